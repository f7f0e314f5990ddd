"""Runs the Dockerfile's steps in a new clone, without a container engine.

    python scripts/rehearse_container.py FOLDER [--wheelhouse DIR]

Steps that install system packages are omitted. With a wheelhouse, pip has no network access. The
container's command is run at its quick size.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DOCKERFILE = ROOT / "containers" / "Dockerfile"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="folder for the clone; must not exist")
    parser.add_argument("--wheelhouse", default="", help="the build argument of that name")
    arguments = parser.parse_args()
    clone = ["git", "clone", "--quiet", "--local", str(ROOT), str(arguments.folder)]
    subprocess.run(clone, check=True)
    hidden = ("VIRTUAL_ENV", "PYTHONPATH", "MAKEFLAGS", "MAKELEVEL")
    environment = {key: value for key, value in os.environ.items() if key not in hidden}
    if arguments.wheelhouse:
        environment["WHEELHOUSE"] = str(Path(arguments.wheelhouse).resolve())
        nowhere = "http://127.0.0.1:9"
        environment |= {"http_proxy": nowhere, "https_proxy": nowhere, "no_proxy": ""}
    for step in steps(DOCKERFILE.read_text()):
        print(f"$ {step}", flush=True)
        start = time.monotonic()
        done = subprocess.run(["bash", "-ec", step], cwd=arguments.folder, env=environment)
        print(f"  {time.monotonic() - start:.0f} s", flush=True)
        if done.returncode:
            print(f"error: `{step}` ended with status {done.returncode}", file=sys.stderr)
            return 1
    return 0


def steps(dockerfile: str) -> Iterator[str]:
    """The commands run in the folder of the sources, in order."""
    for line in dockerfile.splitlines():
        word, _, rest = line.partition(" ")
        if word == "RUN" and not rest.startswith("apt-get "):
            yield rest
        if word == "CMD":
            yield f"{shlex.join(json.loads(rest))} QUICK=1"


if __name__ == "__main__":
    sys.exit(main())
