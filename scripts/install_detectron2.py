"""Installs an importable `detectron2` into this Python, unless there is one.

PyPI has Detectron2's v0.6 as `pb1-detectron2`: the Python sources of upstream's tag without the
C++ sources. They are taken from the hash-checked archive and installed as the distribution
`detectron2` 0.6; `intl_transfer.detectron2_compat` supplies what is missing.

    python scripts/install_detectron2.py [--sdist FILE]
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

NAME, VERSION = "pb1-detectron2", "0.6"
SHA256 = "5d2e9e51e523ec72f6a31cca04b0a515492e9514b773a3d134cedc0677170b29"

# Exists while files are being copied, so that an interrupted installation is detected.
UNFINISHED = Path(sys.prefix) / "detectron2.unfinished"

# Packages that upstream installs in `detectron2.projects`, with their folders.
PROJECTS = {
    "point_rend": "projects/PointRend/point_rend",
    "deeplab": "projects/DeepLab/deeplab",
    "panoptic_deeplab": "projects/Panoptic-DeepLab/panoptic_deeplab",
}

PYPROJECT = f"""\
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "detectron2"
version = "{VERSION}"
description = "Detectron2 v{VERSION}, Python sources only (no compiled operators)"

[tool.setuptools.packages.find]
include = ["detectron2*"]

[tool.setuptools.package-data]
"detectron2.model_zoo" = ["configs/**/*.yaml", "configs/**/*.py"]
"""


class InstallError(Exception):
    """Detectron2 cannot be installed."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--sdist", type=Path, help="use this archive (for machines without network)"
    )
    arguments = parser.parse_args()
    found = installed()
    if found is not None:
        print(f"detectron2 is there already: {found}")
        return 0
    try:
        with tempfile.TemporaryDirectory() as folder:
            work = Path(folder)
            sdist = arguments.sdist or download(work)
            check_hash(sdist)
            tree = lay_out(unpack(sdist, work / "unpacked"), work / "tree")
            UNFINISHED.touch()
            pip("install", "--no-deps", "--no-build-isolation", "--force-reinstall", str(tree))
            UNFINISHED.unlink()
    except InstallError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"installed detectron2 {VERSION} (Python sources; no compiled operators)")
    return 0


def installed() -> Path | None:
    """The folder of an importable `detectron2`, or None."""
    if UNFINISHED.exists():
        return None
    spec = importlib.util.find_spec("detectron2")
    # A folder without `__init__.py` has no origin and is not a package.
    return None if spec is None or spec.origin is None else Path(spec.origin).parent


def pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        output = done.stdout + done.stderr
        print(output)
        if "DO NOT MATCH THE HASHES" in output:
            got = next((s.split()[-1] for s in output.splitlines() if "Got" in s), "another")
            raise InstallError(hash_message(f"{NAME} {VERSION}", got))
        lines = [s for s in output.splitlines() if s.startswith("ERROR")] or output.splitlines()
        raise InstallError(
            f"pip {arguments[0]} of {NAME} {VERSION} failed: "
            f"{lines[-1] if lines else 'no output'}. Without a network, fetch the archive "
            "elsewhere and give it with --sdist FILE"
        )


def download(folder: Path) -> Path:
    """Downloads the archive with pip, which checks the hash before executing anything in it."""
    requirement = folder / "requirement.txt"
    requirement.write_text(f"{NAME}=={VERSION} --hash=sha256:{SHA256}\n")
    # Without isolation, since its set-up script needs the installed torch.
    options = ["--no-deps", "--no-binary", ":all:", "--no-build-isolation", "--require-hashes"]
    pip("download", *options, "-d", str(folder / "sdist"), "-r", str(requirement))
    return next((folder / "sdist").glob("*.tar.gz"))


def hash_message(what: object, found: str) -> str:
    return (
        f"{what}: sha256 is {found}, expected {SHA256}. The archive is damaged or not the one that "
        "was tested; nothing was installed. Fetch it again, or install Detectron2 from its source"
    )


def check_hash(sdist: Path) -> None:
    if not sdist.is_file():
        raise InstallError(f"{sdist} is not a file; expected the archive of {NAME} {VERSION}")
    found = hashlib.sha256(sdist.read_bytes()).hexdigest()
    if found != SHA256:
        raise InstallError(hash_message(sdist, found))


def unpack(sdist: Path, folder: Path) -> Path:
    with tarfile.open(sdist) as archive:
        if hasattr(tarfile, "data_filter"):
            archive.extractall(folder, filter="data")
        else:  # the first releases of Python 3.10 and 3.11
            for member in archive.getmembers():
                path = Path(member.name)
                plain = member.isfile() or member.isdir()
                if path.is_absolute() or ".." in path.parts or not plain:
                    raise InstallError(f"{sdist} holds '{member.name}', which is not unpacked")
            archive.extractall(folder)
    return next(folder.iterdir())


def lay_out(source: Path, tree: Path) -> Path:
    """Lays out the package like upstream's set-up, ready for installation."""
    shutil.copytree(source / "detectron2", tree / "detectron2")
    for name, place in PROJECTS.items():
        target = tree / "detectron2" / "projects" / name
        if not target.exists():
            shutil.copytree(source / place, target)
    shutil.copy(source / "LICENSE", tree / "LICENSE")
    (tree / "pyproject.toml").write_text(PYPROJECT)
    return tree


if __name__ == "__main__":
    sys.exit(main())
