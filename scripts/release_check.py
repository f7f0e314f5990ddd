"""Checks the requirements of a release: `make release-check`, which also runs lint and all tests.

These are: the same version everywhere, also in the changelog's newest entry, with the citation's
date; no uncommitted changes; no large files; and a complete wheel and sdist.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

try:
    from intl_transfer.places import use_own_sources

    use_own_sources(__name__, __file__)
except ModuleNotFoundError:
    sys.exit("error: not set up; run `make setup`, then use .venv/bin/python or activate .venv")

import yaml

from intl_transfer.command_line import parse

ROOT = Path(__file__).resolve().parents[1]
LARGEST = 1 << 20  # bytes
#: Required files in a wheel, in addition to modules.
IN_WHEEL = (
    "intl_transfer/py.typed",
    "intl_transfer/_revision.json",
    "intl_transfer/results/published.yaml",
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parse(parser)
    problems = list(problems_of(ROOT))
    problems += built()
    for problem in problems:
        print(f"not ready: {problem}", file=sys.stderr)
    print("ready for release" if not problems else f"{len(problems)} problem(s)")
    return 1 if problems else 0


def problems_of(root: Path) -> Iterator[str]:
    """Reasons why the sources cannot be released."""
    version = _version((root / "intl_transfer" / "__init__.py").read_text())
    citation = yaml.safe_load((root / "CITATION.cff").read_text())
    if str(citation.get("version")) != version:
        yield f"CITATION.cff has version {citation.get('version')}, the package {version}"
    heading = re.search(r"^## (.*)$", (root / "CHANGELOG.md").read_text(), re.MULTILINE)
    newest = heading[1] if heading else "no entry"
    dated = re.fullmatch(rf"{re.escape(version)} \((\d{{4}}-\d\d-\d\d)\)", newest)
    if dated is None:
        yield f"CHANGELOG.md begins with '{newest}'; expected '{version} (YYYY-MM-DD)'"
    elif str(citation.get("date-released")) != dated[1]:
        found = citation.get("date-released")
        yield f"CITATION.cff has date-released {found}, CHANGELOG.md {dated[1]}"
    changed = _git(root, "status", "--porcelain")
    if changed:
        yield f"not committed: {', '.join(line[3:] for line in changed.splitlines())}"
    for name in _git(root, "ls-files").splitlines():
        if (root / name).is_file() and (root / name).stat().st_size > LARGEST:
            yield f"{name} is larger than 1 MB"


def _version(package: str) -> str:
    found = re.search(r'^__version__ = "(.+)"$', package, re.MULTILINE)
    return found[1] if found else "none"


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def built() -> list[str]:
    """Builds both archives from a new clone; returns what is missing in them."""
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "clone"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        code = (
            "from setuptools import build_meta as b; print(b.build_sdist('.'), b.build_wheel('.'))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=clone, capture_output=True, text=True
        )
        if done.returncode:
            return [f"the archives cannot be built: {done.stderr.splitlines()[-1]}"]
        sdist, wheel = (clone / name for name in done.stdout.split()[-2:])
        with zipfile.ZipFile(wheel) as archive:
            names = set(archive.namelist())
        problems = [f"{wheel.name} lacks {name}" for name in IN_WHEEL if name not in names]
        with tarfile.open(sdist) as archive:
            inside = {name.partition("/")[2] for name in archive.getnames()}
        required = ("pyproject.toml", "setup.py", "README.md", "LICENSE")
        return problems + [f"{sdist.name} lacks {name}" for name in required if name not in inside]


if __name__ == "__main__":
    sys.exit(main())
