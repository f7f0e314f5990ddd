"""What a build adds to the sources: configurations that installed commands read, and the revision.

Everything else is in ``pyproject.toml``. In a clone nothing is copied: configurations are read from
``configs/``, the revision from git.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.editable_wheel import editable_wheel
from setuptools.command.sdist import sdist

ROOT = Path(__file__).resolve().parent
#: Folders of ``configs/`` that commands of the installed package read.
STAGES = ("analysis", "detection", "evaluation")
#: What a clone has beside the library, and no wheel.
OF_A_CLONE = ("pretrain", "detection", "slurm", "scripts", "benchmarks")
STAMP = Path("intl_transfer") / "_revision.json"


def git_state() -> dict[str, object]:
    """The revision that is built, of the repository that tracks this file; an sdist's own stamp."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "setup.py")
        return {"revision": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        if (ROOT / STAMP).is_file():
            stamp: dict[str, object] = json.loads((ROOT / STAMP).read_text())
            return stamp
        return {"revision": None, "dirty": None}


#: Looked up before a build leaves its own files beside the sources.
STATE = git_state()


def write_stamp(folder: Path) -> None:
    """Writes the revision where the package looks for it."""
    (folder / STAMP).parent.mkdir(parents=True, exist_ok=True)
    (folder / STAMP).write_text(json.dumps(STATE) + "\n")


class BuildPy(build_py):
    """Copies configurations and stamps the revision, but for editable installs."""

    def run(self) -> None:
        """Builds."""
        super().run()
        if self.editable_mode:
            return
        package = Path(self.build_lib) / "intl_transfer"
        for stage in STAGES:
            target = package / "configs" / stage
            target.mkdir(parents=True, exist_ok=True)
            for file in sorted((ROOT / "configs" / stage).glob("*.yaml")):
                shutil.copyfile(file, target / file.name)
        write_stamp(Path(self.build_lib))


class EditableWheel(editable_wheel):
    """Makes stages, launchers and benchmarks importable too, from the clone that they lie in."""

    def run(self) -> None:
        """Installs."""
        self.distribution.packages = [*(self.distribution.packages or []), *OF_A_CLONE]
        super().run()


class Sdist(sdist):
    """Stamps the revision: an unpacked sdist has no git."""

    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        """Makes the tree that is packed."""
        super().make_release_tree(base_dir, files)
        write_stamp(Path(base_dir))


setup(cmdclass={"build_py": BuildPy, "editable_wheel": EditableWheel, "sdist": Sdist})
