"""Detectron2 before any test module, and room on the disk."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from intl_transfer import detectron2_compat

# Test modules import Detectron2 at their top.
detectron2_compat.install()

#: GB that the tests of two workers take at one time, rounded up from what was measured.
_ROOM = 3

#: The folders that each fixture made when it was set up.
_made: dict[pytest.FixtureDef[object], set[Path]] = {}


def pytest_configure(config: pytest.Config) -> None:
    """Says what is missing before the tests, which a full disk fails one by one."""
    folder = Path(config.getoption("basetemp") or tempfile.gettempdir())
    free = shutil.disk_usage(folder if folder.is_dir() else folder.parent).free / 1e9
    if free < _ROOM and not hasattr(config, "workerinput"):
        raise pytest.UsageError(
            f"{free:.1f} GB free at {folder}, and all tests take up to {_ROOM} at one time; "
            "free some space, or set TMPDIR to a folder on another disk"
        )


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(
    fixturedef: pytest.FixtureDef[object], request: pytest.FixtureRequest
) -> Iterator[None]:
    """Notes what ``tmp_path_factory`` gives to a fixture of a module or of the session."""
    factory = getattr(request.config, "_tmp_path_factory", None)
    if fixturedef.scope == "function" or factory is None:
        return (yield)
    parent = factory.getbasetemp()
    before = set(parent.iterdir())
    try:
        return (yield)
    finally:
        # What a fixture requested on the way made its own.
        of_others = set().union(*_made.values())
        _made[fixturedef] = set(parent.iterdir()) - before - of_others


def pytest_fixture_post_finalizer(fixturedef: pytest.FixtureDef[object]) -> None:
    """Deletes a fixture's folders with it.

    pytest deletes ``tmp_path`` after its test, but what ``tmp_path_factory`` gave only after the
    last one: runs of the stages would take tens of gigabytes until then.
    """
    for folder in _made.pop(fixturedef, ()):
        shutil.rmtree(folder, ignore_errors=True)
