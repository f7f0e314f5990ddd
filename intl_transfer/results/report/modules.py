"""The page's JavaScript modules as the one script that it holds.

A page that is opened from a disk may not load modules, and this one loads nothing. Names of all
modules stand in one scope there, so that no two may be the same; tests hold that. Documentation
comments, which are types for the checker mostly, stay in the modules.
"""

from __future__ import annotations

import re
from collections.abc import Callable

#: The module that no other imports.
FIRST = "app.js"
_IMPORT = r'^import \{[^}]*\} from "\./(\w+\.js)";\n'
_IMPORTS = re.compile(rf"(?:{_IMPORT})+\n?", re.MULTILINE)
_EXPORT = re.compile(r"^export (?=(?:async )?(?:function|class|const|let) )", re.MULTILINE)

# Those that begin and end lines; one within a line (a cast) stays.
_DOCUMENTATION = re.compile(r"^[ \t]*/\*\*.*?\*/\n", re.MULTILINE | re.DOTALL)


def in_order(read: Callable[[str], str], first: str = FIRST) -> dict[str, str]:
    """Modules by name, in the order in which a browser runs them: each after what it imports.

    Args:
        read: gives a module's text.
        first: the module that stands for all.

    Returns:
        Their texts as they were read.
    """
    found: dict[str, str] = {}
    seen: set[str] = set()

    def visit(name: str) -> None:
        if name in seen:  # also where two modules import each other
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
        read: gives a module's text.
    """
    return "\n".join(map(as_script, in_order(read).values()))
