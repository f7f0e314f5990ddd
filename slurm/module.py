"""Runs a module of this copy of the sources; the command of jobs whose stage is no script.

    python slurm/module.py intl_transfer evaluate --config shapes_knn ...

``python -m`` looks into the working directory first, which is the clone if the launcher was started
there: it may have changed since, and the job's copy would not be used.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

try:
    from intl_transfer.places import use_own_sources

    use_own_sources(__name__, __file__)
except ModuleNotFoundError:
    sys.exit("error: not set up; run `make setup`, then use .venv/bin/python or activate .venv")


def command(code: Path, module: str) -> list[str]:
    """The beginning of a command line; the module's arguments follow.

    Args:
        code: the sources to run.
        module: by its dotted name; a package's ``__main__``.
    """
    return [sys.executable, str(code / "slurm" / "module.py"), module]


if __name__ == "__main__":
    del sys.argv[0]
    if not sys.argv:
        sys.exit("error: no module; expected for example `intl_transfer evaluate`")
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
