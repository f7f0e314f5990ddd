"""Downloads everything that `make setup` installs, for machines without network; writes the lock.

    make wheelhouse [DEV=1] [WHEELHOUSE=wheelhouse]     # with a network
    make setup WHEELHOUSE=wheelhouse                    # where there is none
    make lock                                           # after a change of constraints.txt

A wheelhouse is a folder of archives and `lock.txt`, with the SHA-256 of each, which pip then
requires. If `locks/` has tested hashes for this Python and machine, all archives must match them.
`make lock` writes them from pip's index.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from importlib import metadata
from pathlib import Path

try:
    from intl_transfer.places import use_own_sources

    use_own_sources(__name__, __file__)
except ModuleNotFoundError:
    sys.exit("error: not set up; run `make setup`, then use .venv/bin/python or activate .venv")

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_sdist_filename, parse_wheel_filename

from intl_transfer.command_line import parse
from intl_transfer.runs import sha256_file
from scripts import install_detectron2

ROOT = Path(__file__).resolve().parents[1]
CONSTRAINTS = ROOT / "constraints.txt"
#: Build requirements of the project and of packages without wheels.
BUILD_TOOLS = ("setuptools", "wheel")
LOCK = "lock.txt"

Hashes = dict[str, str]  # "name==version" to SHA-256


class WheelhouseError(Exception):
    """The wheelhouse cannot be made."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, nargs="?", help="folder of the wheelhouse")
    parser.add_argument(
        "--dev", action="store_true", help="include requirements of tests and linters"
    )
    parser.add_argument(
        "--lock", action="store_true", help="write the lock for this Python instead"
    )
    arguments = parse(parser)
    if (arguments.folder is None) != arguments.lock:
        parser.error("give the wheelhouse's folder, or --lock")
    try:
        if arguments.lock:
            write_lock(tested_lock(), locked_by_pip(applicable(CONSTRAINTS.read_text())))
            print(f"{tested_lock().relative_to(ROOT)} written")
        else:
            make(arguments.folder, arguments.dev)
    except (WheelhouseError, install_detectron2.InstallError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def make(folder: Path, dev: bool) -> None:
    """Downloads everything into ``folder``, checks it, writes its lock."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / LOCK).unlink(missing_ok=True)  # until complete
    packages = [*BUILD_TOOLS, *requirements(metadata.requires("intl-transfer") or [], dev)]
    print(
        f"  {len(packages)} packages and what they need, into {folder} (several GB) ...", flush=True
    )
    pip("download", "-c", str(CONSTRAINTS), "-d", str(folder), *packages)
    sdist = install_detectron2.download(folder)
    sdist.replace(folder / sdist.name)
    sdist.parent.rmdir()
    (folder / "requirement.txt").unlink()
    detectron2 = f"{install_detectron2.NAME}=={install_detectron2.VERSION}"
    found = {key: value for key, value in hashes(folder).items() if key != detectron2}
    compare(found, read_lock(tested_lock()) if tested_lock().exists() else None)
    write_lock(folder / LOCK, found, dev)
    size = sum(file.stat().st_size for file in folder.iterdir()) / 1e9
    print(
        f"{folder}: {len(found) + 1} archives, {size:.1f} GB; elsewhere, with this clone and this"
    )
    print(f"folder: make setup WHEELHOUSE={folder}{' DEV=1' if dev else ''}")


def requirements(declared: Iterable[str], dev: bool) -> list[str]:
    """A distribution's requirements that apply here."""
    found = []
    for text in declared:
        requirement = Requirement(text)
        marker = requirement.marker
        if marker is None or marker.evaluate({"extra": "dev" if dev else ""}):
            requirement.marker = None
            found.append(str(requirement))
    return found


def hashes(folder: Path) -> Hashes:
    """SHA-256 of every archive in a folder.

    Raises:
        WheelhouseError: if a file is not a package archive, or a package occurs twice.
    """
    found: Hashes = {}
    for file in sorted(folder.iterdir()):
        try:
            name, version = (
                parse_wheel_filename(file.name)[:2]
                if file.suffix == ".whl"
                else parse_sdist_filename(file.name)
            )
        except ValueError:
            raise WheelhouseError(
                f"{file} is neither a wheel nor a source archive; use a separate folder"
            ) from None
        key = f"{name}=={version}"
        if any(other.split("==")[0] == name for other in found):
            raise WheelhouseError(
                f"{folder} holds {name} twice; remove the older one, or start over"
            )
        found[key] = sha256_file(file)
    return found


def compare(found: Mapping[str, str], tested: Mapping[str, str] | None) -> None:
    """Compares downloads with the tested lock; None if there is none for this Python.

    Raises:
        WheelhouseError: naming what differs.
    """
    if tested is None:
        print(f"  no {tested_lock().relative_to(ROOT)}: using the hashes of the downloaded files")
        return
    differ = [key for key, value in found.items() if tested.get(key) != value]
    if differ:
        raise WheelhouseError(
            f"not what was tested ({tested_lock().relative_to(ROOT)}): {', '.join(differ)}; pip's "
            "settings may name another index, or another build"
        )


def tested_lock() -> Path:
    """The lock of this Python on this kind of machine."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    return ROOT / "locks" / f"python{version}-{sys.platform}-{platform.machine()}.txt"


def applicable(constraints: str) -> list[str]:
    """The pins that apply to this Python."""
    lines = (line.partition("#")[0].strip() for line in constraints.splitlines())
    pins = [Requirement(line) for line in lines if line]
    return [f"{p.name}{p.specifier}" for p in pins if p.marker is None or p.marker.evaluate()]


def locked_by_pip(pins: list[str]) -> Hashes:
    """The packages that pip would install for some pins, with the hashes of its index."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        options = ["--dry-run", "--ignore-installed", "--no-deps", "--quiet", "--report"]
        pip("install", *options, str(report), *pins)
        chosen = json.loads(report.read_text())["install"]
    found: Hashes = {}
    for item in chosen:
        output, where = item["metadata"], item["download_info"]
        key = f"{canonicalize_name(output['name'])}=={output['version']}"
        found[key] = where["archive_info"]["hashes"]["sha256"]
    return found


def write_lock(file: Path, found: Mapping[str, str], dev: bool = True) -> None:
    """A requirements file with hashes; its first line states Python and machine."""
    lines = [f"# {tested_lock().stem}{' dev' if dev else ''}"]
    lines += [f"{key} --hash=sha256:{value}" for key, value in sorted(found.items())]
    file.parent.mkdir(exist_ok=True)
    part = file.with_suffix(".part")
    part.write_text("\n".join(lines) + "\n")
    os.replace(part, file)


def read_lock(file: Path) -> Hashes:
    """The hashes of a lock."""
    return dict(_entries(file.read_text()))


def _entries(text: str) -> Iterator[tuple[str, str]]:
    for line in text.splitlines():
        if line and not line.startswith("#"):
            key, _, value = line.partition(" --hash=sha256:")
            yield key, value


def pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        output = (done.stdout + done.stderr).splitlines()
        errors = [line for line in output if line.startswith("ERROR")] or output or ["no output"]
        raise WheelhouseError(f"pip {arguments[0]}: {errors[-1].removeprefix('ERROR: ')}")


if __name__ == "__main__":
    sys.exit(main())
