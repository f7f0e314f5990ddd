"""Makes `.venv` and installs everything: torch, Detectron2, the project. Used by `make setup`.

    python3 scripts/setup.py           # what the suite needs
    python3 scripts/setup.py --dev     # and what its tests and linters need
    python3 scripts/setup.py --wheelhouse DIR    # from what `make wheelhouse` gathered, no network

Runs on the standard library of the Python it is started with. Run again, it does nothing, also from
within `.venv`; after an interruption it takes up where that was. Annotations are kept to what
Python 3.6 can read, so that an old one is told to be too old.
"""

import argparse
import contextlib
import fcntl
import hashlib
import itertools
import json
import os
import platform
import re
import shutil
import site
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
LOG = ROOT / "logs" / "setup.log"
STAMP = VENV / "setup.stamp"
UNFINISHED = VENV / "setup.unfinished"
INPUTS = ("pyproject.toml", "constraints.txt", "scripts/setup.py", "scripts/install_detectron2.py")

MINIMUM_PYTHON = (3, 10)
MINIMUM_DISK_GB = 8

# What pip says of a connection that fails, and what it then says of the package.
UNREACHABLE = (
    r"Failed to establish a new connection|name resolution|Network is unreachable|"
    r"NewConnectionError|ConnectTimeout\w*|ReadTimeout\w*|ProxyError|SSLError|NameResolutionError"
)
NOT_FOUND = r"No matching distribution|ResolutionImpossible|Max retries exceeded"


class SetupError(Exception):
    """One clear line about why the set-up cannot continue."""


def main(arguments: "Sequence[str]" = ()) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dev", action="store_true", help="also tests, linters, trackers")
    parser.add_argument("--wheelhouse", help="install from this folder alone, hashes checked")
    given = parser.parse_args(list(arguments))
    dev = given.dev
    start = time.monotonic()
    try:
        check_python(sys.version_info[:3])
        if is_set_up(dev):
            print(f"set up already: {VENV}")
            return 0
        wheelhouse = whole_wheelhouse(given.wheelhouse, dev)
        maker = outside()
        if maker is not None:  # `.venv` cannot be made again from within
            command = [maker, str(Path(__file__).resolve()), *arguments]
            return subprocess.run(command, env=without_venv()).returncode
        check_disk(shutil.disk_usage(VENV if VENV.exists() else ROOT).free, size(VENV))
        with alone():
            set_up(dev, wheelhouse)
    except SetupError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        what = error.strerror or str(error)
        print(f"error: {error.filename or VENV}: {what}; `make setup` continues", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; `make setup` continues", file=sys.stderr)
        return 130
    print(f"set up in {time.monotonic() - start:.0f} s: {VENV}")
    return 0


def set_up(dev: bool, wheelhouse: "Path | None") -> None:
    # What is there stays valid unless something in it is changed and the rest then fails.
    before = installed()
    if VENV.exists():
        UNFINISHED.touch()
    try:
        install(dev, wheelhouse)
    except SetupError:
        if before and installed() == before:
            UNFINISHED.unlink(missing_ok=True)
        raise
    STAMP.write_text(json.dumps(stamp(dev), indent=2) + "\n")
    UNFINISHED.unlink(missing_ok=True)


@contextlib.contextmanager
def alone() -> "Iterator[None]":
    """Keeps a second set-up from making `.venv` anew below the first (`make demo`, `make test`)."""
    LOG.parent.mkdir(exist_ok=True)
    with open(LOG.with_suffix(".lock"), "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SetupError(
                f"another set-up of this clone is running; wait for it ({LOG} shows its progress)"
            ) from None
        except OSError:
            pass  # a file system without locks
        yield


def venv_python() -> Path:
    return VENV / "bin" / "python"


def stamp(dev: bool) -> "dict[str, Any]":
    """What was set up: from which files, for whom, by which Python."""
    digest = hashlib.sha256(str(ROOT).encode())
    for name in INPUTS:
        digest.update((ROOT / name).read_bytes())
    python = {"prefix": sys.prefix, "version": sys.version, "executable": sys.executable}
    return {"inputs": digest.hexdigest(), "dev": dev, "python": python}


def read_stamp() -> "dict[str, Any]":
    """The stamp of the last whole set-up; empty where there is none that can be read."""
    try:
        found = json.loads(STAMP.read_text())
        return found if isinstance(found, dict) and isinstance(found.get("python"), dict) else {}
    except (OSError, ValueError):
        return {}


def is_set_up(dev: bool) -> bool:
    """Whether a set-up would change nothing.

    What is there for developers is there for users too. From within `.venv` its own Python, which
    is the one that made it by another name, changes nothing either.
    """
    found, wanted = read_stamp(), stamp(dev)
    same = found.get("inputs") == wanted["inputs"] and (found.get("dev") or not dev)
    if not same or UNFINISHED.exists() or not venv_python().exists() or not is_installed():
        return False
    python = found["python"]
    if python.get("version") != sys.version:  # its packages are for that one
        return False
    return is_inside() or python.get("prefix") == sys.prefix


def packages() -> Path:
    """The folder of the packages that `.venv` has for this version of Python."""
    version = ".".join(map(str, sys.version_info[:2]))
    return VENV / "lib" / f"python{version}" / "site-packages"


def is_installed() -> bool:
    """Whether the last package of a set-up is there: of `.venv`, parts may be cleaned away."""
    return any(packages().glob("intl_transfer-*.dist-info"))


def is_inside() -> bool:
    """Whether this is the Python of `.venv`."""
    return os.path.realpath(sys.prefix) == os.path.realpath(str(VENV))


def outside() -> "str | None":
    """From within `.venv`, the Python that it was made by; else None."""
    if not is_inside():
        return None
    made_by = read_stamp().get("python", {}).get("executable")
    own = os.path.realpath(str(VENV / "bin"))
    for python in map(str, filter(None, (made_by, getattr(sys, "_base_executable", None)))):
        if os.path.exists(python) and os.path.realpath(os.path.dirname(python)) != own:
            return python
    raise SetupError(
        f"this is the Python of {VENV} itself, and the one that made it is gone; `deactivate`, "
        "then `make setup`"
    )


def without_venv() -> "dict[str, str]":
    """The environment as before `source .venv/bin/activate`."""
    hidden = ("VIRTUAL_ENV", "VIRTUAL_ENV_PROMPT", "PYTHONHOME")
    environment = {key: value for key, value in os.environ.items() if key not in hidden}
    paths = environment.get("PATH", "").split(os.pathsep)
    own = os.path.realpath(str(VENV / "bin"))
    environment["PATH"] = os.pathsep.join(p for p in paths if os.path.realpath(p) != own)
    return environment


def own_environment() -> "dict[str, str]":
    """This environment, without what would bend what is installed, or where.

    Packages on PYTHONPATH count as installed for pip, and are gone in the next shell; PYTHONHOME
    makes the Python of `.venv` another one; pip may be told to install elsewhere (a site's
    `user = true` is an error in `.venv`).
    """
    hidden = ["PYTHONHOME", "PYTHONPATH", "PYTHONSTARTUP", "PYTHONPLATLIBDIR"]
    hidden += ["PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_DRY_RUN", "PIP_NO_DEPS", "PIP_PYTHON"]
    environment = {key: value for key, value in os.environ.items() if key not in hidden}
    return {**environment, "PIP_USER": "0"}


def installed() -> str:
    """Every package of `.venv` with its version; empty where that cannot be told."""
    if not venv_python().exists():
        return ""
    command = [str(venv_python()), "-m", "pip", "list", "--format=freeze"]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=own_environment()
    )
    return done.stdout.decode(errors="replace") if done.returncode == 0 else ""


def check_python(version: "Sequence[int]") -> None:
    if tuple(version[:2]) < MINIMUM_PYTHON:
        found = ".".join(map(str, version))
        wanted = ".".join(map(str, MINIMUM_PYTHON))
        raise SetupError(
            f"Python {found} is too old: expected {wanted} or newer. Choose another with "
            "`PYTHON=/path/to/python3 make setup`"
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
            "6.1 GB, more while it is made); free some space, or clone to another disk"
        )


def whole_wheelhouse(folder: "str | None", dev: bool = False) -> "Path | None":
    """The lock of a wheelhouse that was made for this Python; None where none was given."""
    if not folder:
        return None
    lock = Path(str(folder)).resolve() / "lock.txt"
    try:
        made_for, *others = lock.read_text().splitlines()[0].lstrip("# ").split()
    except (OSError, IndexError, ValueError):
        raise SetupError(
            f"{lock} cannot be read; expected a folder that `make wheelhouse` made to its end"
        ) from None
    version = ".".join(map(str, sys.version_info[:2]))
    here = f"python{version}-{sys.platform}-{platform.machine()}"
    if made_for != here:
        raise SetupError(
            f"{lock.parent} was made for {made_for}, and this is {here}; make it with the same "
            "Python on the same kind of machine, or choose that Python with `PYTHON=`"
        )
    if dev and "dev" not in others:
        raise SetupError(
            f"{lock.parent} lacks what tests and linters need; make it with `make wheelhouse DEV=1`"
        )
    return lock


def install(dev: bool, lock: "Path | None" = None) -> None:
    LOG.parent.mkdir(exist_ok=True)
    LOG.write_text("")
    # A compiled Detectron2 belongs to the torch it was built for: both are used as they are.
    system = has_compiled_detectron2(sys.executable)
    if system:
        print(f"{sys.executable} has a compiled Detectron2: using it, with its torch")
    make_venv(system)
    pip = [str(venv_python()), "-m", "pip", "install", "--disable-pip-version-check"]
    pins = [] if system else ["-c", str(ROOT / "constraints.txt")]
    detectron2 = [str(venv_python()), str(ROOT / "scripts" / "install_detectron2.py")]
    environment = {}
    if lock is not None:
        folder = Path(str(lock)).parent
        # No setting of pip's counts but these.
        environment = {key: "" for key in os.environ if key.startswith("PIP_")}
        environment.update(PIP_CONFIG_FILE=os.devnull, PIP_NO_INDEX="1", PIP_FIND_LINKS=str(folder))
        found = sorted(folder.glob("pb1?detectron2-*.tar.gz"))
        detectron2 += ["--sdist", str(found[0])] if found else []
        run(f"everything from {folder}", [*pip, "--require-hashes", "-r", str(lock)], environment)
    elif not system:
        run("torch and torchvision (several GB)", [*pip, *pins, "torch", "torchvision"])
        run("build tools", [*pip, *pins, "setuptools", "wheel"])
    run("Detectron2", detectron2, environment, shown=True)
    # The build tools are there already: nothing has to be fetched for the project itself.
    project = f"{ROOT}[dev]" if dev else str(ROOT)
    what = "what it, its tests and linters need" if dev else "what it needs"
    command = [*pip, *pins, "--no-build-isolation", "-e", project]
    run(f"intl-transfer and {what}", command, environment)
    if dev:
        # It pins a torch of its own: only its saving code is loaded, by tests, from beside.
        beside = [*pip, "--no-deps", "--upgrade", "--target", str(VENV / "producers")]
        try:
            command = [*beside, "solo-learn==1.0.2"]
            run("solo-learn, beside the environment", command, environment)
        except SetupError as error:  # an index of one's own may not have it
            print(f"  left out, its test is skipped: {error}")


def make_venv(system: bool) -> None:
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    if not is_whole_venv(version, system):
        options = ["--system-site-packages"] if system else []
        # `.venv` may be a link to another disk, which venv does not take.
        place = os.path.realpath(str(VENV))
        command = [sys.executable, "-m", "venv", "--clear", *options, place]
        run(f".venv with Python {version}", command)
    if system and sys.prefix != sys.base_prefix:
        # Of a Python in a virtual environment, venv shares the packages of the base alone.
        lines = [f"import site; site.addsitedir({path!r})" for path in site.getsitepackages()]
        (packages() / "shared_environment.pth").write_text("\n".join(lines) + "\n")


def is_whole_venv(version: str, system: bool) -> bool:
    """Whether `.venv` was made, to its end, by this version of Python and of this kind."""
    config = VENV / "pyvenv.cfg"
    said = config.read_text() if config.exists() else ""
    kind = f"include-system-site-packages = {str(system).lower()}"
    if f"version = {version}." not in said or kind not in said or not venv_python().exists():
        return False
    command = [str(venv_python()), "-m", "pip", "--version"]
    return subprocess.run(command, capture_output=True, env=own_environment()).returncode == 0


def has_compiled_detectron2(python: str) -> bool:
    code = "import torch; from detectron2 import _C"
    command = [python, "-c", code]
    return subprocess.run(command, capture_output=True, env=own_environment()).returncode == 0


def run(
    title: str,
    command: "Sequence[str]",
    environment: "Mapping[str, str] | None" = None,
    shown: bool = False,
) -> None:
    """Runs one step, its output in the log, with a sign of life while it lasts."""
    print(f"  {title} ...", flush=True)
    began = last = time.monotonic()
    offset = LOG.stat().st_size
    merged = {**own_environment(), "PYTHONUNBUFFERED": "1", **dict(environment or {})}
    # What is empty is not there at all: pip reads an empty setting as one.
    environment = {key: value for key, value in merged.items() if value}
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


def reason(lines: "Sequence[str]") -> str:
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
    sys.exit(main(sys.argv[1:]))
