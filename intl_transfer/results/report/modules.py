"""Bundles the page's JavaScript modules into one script.

A page opened from disk cannot load modules. All modules share one scope in the bundle, so names
must be unique, which tests check. Documentation comments, mostly types for the checker, are
stripped.
"""

from __future__ import annotations

import re
from collections.abc import Callable

#: The entry module.
FIRST = "app.js"
_IMPORT = r'^import \{[^}]*\} from "\./(\w+\.js)";\n'
_IMPORTS = re.compile(rf"(?:{_IMPORT})+\n?", re.MULTILINE)
_EXPORT = re.compile(r"^export (?=(?:async )?(?:function|class|const|let) )", re.MULTILINE)

# Those that begin and end lines; one within a line (a cast) stays.
_DOCUMENTATION = re.compile(r"^[ \t]*/\*\*.*?\*/\n", re.MULTILINE | re.DOTALL)


def in_order(read: Callable[[str], str], first: str = FIRST) -> dict[str, str]:
    """Modules by name, in execution order: each after its imports.

    Args:
        read: returns a module's text.
        first: the entry module.

    Returns:
        Their texts.
    """
    found: dict[str, str] = {}
    seen: set[str] = set()

    def visit(name: str) -> None:
        if name in seen:  # also for circular imports
            return
        seen.add(name)
        text = read(name)
        for match in re.finditer(_IMPORT, text, re.MULTILINE):
            visit(match[1])
        found[name] = text

    visit(first)
    return found


def as_script(text: str) -> str:
    """A module's text without its imports, exports and documentation comments."""
    return _EXPORT.sub("", _DOCUMENTATION.sub("", _IMPORTS.sub("", text)))


def one_script(read: Callable[[str], str]) -> str:
    """All modules, one after the other.

    Args:
        read: returns a module's text.
    """
    return "\n".join(map(as_script, in_order(read).values()))
