"""Makes `.venv` and installs everything: torch, Detectron2, the project. Used by `make setup`.

Runs on the standard library of the Python it is started with. Run again, it does nothing; after an
interruption it takes up where that was. Annotations are kept to what Python 3.6 can read, so that
an old one is told to be too old.
"""

import hashlib
import itertools
import os
import re
import shutil
import site
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
LOG = ROOT / "logs" / "setup.log"
STAMP = VENV / "setup.stamp"
INPUTS = ("pyproject.toml", "constraints.txt", "scripts/setup.py", "scripts/install_detectron2.py")

MINIMUM_PYTHON = (3, 10)
MINIMUM_DISK_GB = 8
COMPILERS = ("cc", "gcc", "clang")

# What pip says of a connection that fails, and what it then says of the package.
UNREACHABLE = (
    r"Failed to establish a new connection|name resolution|Network is unreachable|"
    r"NewConnectionError|ConnectTimeout\w*|ReadTimeout\w*|ProxyError|SSLError|NameResolutionError"
)
NOT_FOUND = r"No matching distribution|ResolutionImpossible|Max retries exceeded"


class SetupError(Exception):
    """One clear line about why the set-up cannot go on."""


def main() -> int:
    start = time.monotonic()
    try:
        check_python(sys.version_info[:3])
        wanted = stamp(sys.executable)
        if STAMP.exists() and STAMP.read_text() == wanted and venv_python().exists():
            print(f"set up already: {VENV}")
            return 0
        check_compiler()
        check_disk(shutil.disk_usage(VENV if VENV.exists() else ROOT).free, size(VENV))
        STAMP.unlink(missing_ok=True)
        install()
        STAMP.write_text(wanted)
    except SetupError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; `make setup` continues", file=sys.stderr)
        return 130
    print(f"set up in {time.monotonic() - start:.0f} s: {VENV}")
    return 0


def venv_python() -> Path:
    return VENV / "bin" / "python"


def stamp(python: str) -> str:
    """Changes whenever a set-up would install something else."""
    digest = hashlib.sha256(f"{ROOT} {python} {sys.version}".encode())
    for name in INPUTS:
        digest.update((ROOT / name).read_bytes())
    return digest.hexdigest()


def check_python(version: Sequence) -> None:
    if tuple(version[:2]) < MINIMUM_PYTHON:
        found = ".".join(map(str, version))
        wanted = ".".join(map(str, MINIMUM_PYTHON))
        raise SetupError(
            f"Python {found} is too old: expected {wanted} or newer. Choose another with "
            "`PYTHON=/path/to/python3 make setup`"
        )


def check_compiler() -> None:
    if not any(shutil.which(name) for name in COMPILERS):
        raise SetupError(
            f"no C compiler found (looked for {', '.join(COMPILERS)} on PATH); some packages are "
            "compiled. On Debian or Ubuntu: apt-get install build-essential python3-dev"
        )


def size(folder: Path) -> int:
    """Bytes in a folder; 0 if there is none."""
    return sum(
        os.lstat(os.path.join(place, name)).st_size
        for place, _, names in os.walk(folder)
        for name in names
    )


def check_disk(free_bytes: int, installed_bytes: int = 0) -> None:
    """What an interrupted set-up has installed need not be free again."""
    free = free_bytes / 1e9
    wanted = max(1.0, MINIMUM_DISK_GB - installed_bytes / 1e9)
    if free < wanted:
        raise SetupError(
            f"{free:.1f} GB free at {ROOT}, expected at least {wanted:.3g} GB (a whole .venv takes "
            "5.5 GB, more while it is made); free some space, or clone to another disk"
        )


def install() -> None:
    LOG.parent.mkdir(exist_ok=True)
    LOG.write_text("")
    # A compiled Detectron2 belongs to the torch it was built for: both are used as they are.
    system = has_compiled_detectron2(sys.executable)
    if system:
        print(f"{sys.executable} has a compiled Detectron2: using it, with its torch")
    make_venv(system)
    pip = [str(venv_python()), "-m", "pip", "install", "--disable-pip-version-check"]
    pins = [] if system else ["-c", str(ROOT / "constraints.txt")]
    if not system:
        run("torch and torchvision (several GB)", [*pip, *pins, "torch", "torchvision"])
        run("build tools", [*pip, *pins, "setuptools", "wheel"])
    script = str(ROOT / "scripts" / "install_detectron2.py")
    run("Detectron2", [str(venv_python()), script], shown=True)
    run("intl-transfer and what it needs", [*pip, *pins, "-e", f"{ROOT}[dev]"])


def make_venv(system: bool) -> None:
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    if not is_whole_venv(version, system):
        options = ["--system-site-packages"] if system else []
        command = [sys.executable, "-m", "venv", "--clear", *options, str(VENV)]
        run(f".venv with Python {version}", command)
    if system and sys.prefix != sys.base_prefix:
        # Of a Python in a virtual environment, venv shares the packages of the base alone.
        lines = [f"import site; site.addsitedir({path!r})" for path in site.getsitepackages()]
        packages = VENV / "lib" / f"python{version}" / "site-packages"
        (packages / "shared_environment.pth").write_text("\n".join(lines) + "\n")


def is_whole_venv(version: str, system: bool) -> bool:
    """Whether `.venv` was made, to its end, by this version of Python and of this kind."""
    config = VENV / "pyvenv.cfg"
    said = config.read_text() if config.exists() else ""
    kind = f"include-system-site-packages = {str(system).lower()}"
    if f"version = {version}." not in said or kind not in said or not venv_python().exists():
        return False
    command = [str(venv_python()), "-m", "pip", "--version"]
    return subprocess.run(command, capture_output=True).returncode == 0


def has_compiled_detectron2(python: str) -> bool:
    code = "import torch; from detectron2 import _C"
    return subprocess.run([python, "-c", code], capture_output=True).returncode == 0


def run(title: str, command: Sequence, shown: bool = False) -> None:
    """Runs one step, its output in the log, with a sign of life while it lasts."""
    print(f"  {title} ...", flush=True)
    began = last = time.monotonic()
    offset = LOG.stat().st_size
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with open(LOG, "ab") as log:
        process = subprocess.Popen(
            list(command), stdout=log, stderr=subprocess.STDOUT, cwd=ROOT, env=environment
        )
        while process.poll() is None:
            time.sleep(0.2)
            if time.monotonic() - last > 20:
                last = time.monotonic()
                print(f"  {title}: {last - began:.0f} s", flush=True)
    said = LOG.read_bytes()[offset:].decode(errors="replace").splitlines()
    if process.returncode != 0:
        raise SetupError(f"{title}: {reason(said)} (whole log: {LOG})")
    if shown and said:
        print(f"  {said[-1]}", flush=True)


def reason(lines: Sequence) -> str:
    """The line of a failed step's output that says most."""
    if any("ensurepip is not available" in line for line in lines):
        return (
            f"{sys.executable} cannot make virtual environments. On Debian or Ubuntu: "
            "apt-get install python3-venv"
        )
    broken = [re.search(UNREACHABLE, line) for line in lines]
    # pip gives up on a package that it could not look for as if there were none.
    if any(broken) and any(re.search(NOT_FOUND, line) for line in lines):
        found = next(match[0] for match in broken if match)
        return f"pip cannot reach its package index ({found}); check the network and pip's settings"
    if "The conflict is caused by:" in lines:
        first = list(lines).index("The conflict is caused by:") + 1
        causes = itertools.takewhile(str.strip, lines[first:])
        return "no versions fit together: " + "; ".join(map(str.strip, causes))
    errors = [line.strip() for line in lines if line.lower().startswith(("error", "fatal"))]
    spoken = errors or [line.strip() for line in lines if line.strip()] or ["no output"]
    return spoken[-1].removeprefix("error: ").removeprefix("ERROR: ")


if __name__ == "__main__":
    sys.exit(main())
