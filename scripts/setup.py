"""Makes `.venv` and installs everything: torch, Detectron2, the project. Used by `make setup`.

Runs on the standard library of the Python it is started with. Run again, it does nothing; after an
interruption it takes up where that was.
"""

from __future__ import annotations

import hashlib
import os
import shutil
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
        check_disk(shutil.disk_usage(ROOT).free)
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
    digest = hashlib.sha256(f"{python} {sys.version}".encode())
    for name in INPUTS:
        digest.update((ROOT / name).read_bytes())
    return digest.hexdigest()


def check_python(version: Sequence[int]) -> None:
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


def check_disk(free_bytes: int) -> None:
    free = free_bytes / 1e9
    if free < MINIMUM_DISK_GB:
        raise SetupError(
            f"{free:.1f} GB free at {ROOT}, expected at least {MINIMUM_DISK_GB} GB (torch alone "
            "takes 5.5 GB); free some space, or clone to another disk"
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
    config = VENV / "pyvenv.cfg"
    command = [sys.executable, "-m", "venv"]
    if config.exists() and f"version = {version}." not in config.read_text():
        command.append("--clear")  # made by another Python
    if system:
        command.append("--system-site-packages")
    run(f".venv with Python {version}", [*command, str(VENV)])


def has_compiled_detectron2(python: str) -> bool:
    code = "import torch; from detectron2 import _C"
    return subprocess.run([python, "-c", code], capture_output=True).returncode == 0


def run(title: str, command: Sequence[str], shown: bool = False) -> None:
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
    said = LOG.read_text(errors="replace")[offset:].splitlines()
    if process.returncode != 0:
        raise SetupError(f"{title}: {reason(said)} (whole log: {LOG})")
    if shown and said:
        print(f"  {said[-1]}", flush=True)


def reason(lines: Sequence[str]) -> str:
    """The line of a failed step's output that says most."""
    errors = [line.strip() for line in lines if line.lower().startswith(("error", "fatal"))]
    spoken = errors or [line.strip() for line in lines if line.strip()] or ["no output"]
    return spoken[-1].removeprefix("error: ").removeprefix("ERROR: ")


if __name__ == "__main__":
    sys.exit(main())
