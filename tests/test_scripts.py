"""Scripts of a clone: where they import from, and what they say where nothing is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import pytest

from intl_transfer.places import cache_folder
from intl_transfer.runs.private import portable_path
from slurm.graph import stage_job
from slurm.jobs import snapshot
from slurm.ledger import Job

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("pretrain", "detection", "slurm", "scripts", "benchmarks")
SCRIPTS = sorted(
    str(file.relative_to(ROOT))
    for folder in FOLDERS
    for file in (ROOT / folder).glob("*.py")
    if '__name__ == "__main__"' in file.read_text()
)
#: These make the set-up, or do with the standard library.
NEED_NOTHING = (
    "scripts/install_detectron2.py",
    "scripts/rehearse_container.py",
    "scripts/setup.py",
)
BARE = [getattr(sys, "_base_executable", sys.executable), "-S", "-E"]
WITHOUT = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def run(*command, cwd, status=0):
    done = subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**WITHOUT, "OMP_NUM_THREADS": "1"},
        timeout=200,
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_scripts_are_found():
    assert len(SCRIPTS) > 20
    assert {"pretrain/train.py", "detection/train_net.py", *NEED_NOTHING} < set(SCRIPTS)


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_bare_python_is_told_to_set_up(script, tmp_path):
    needs = script not in NEED_NOTHING
    output = run(*BARE, ROOT / script, "--help", cwd=tmp_path, status=1 if needs else 0)
    if needs:
        assert output.count("\n") == 1
        assert output.startswith("error: not set up; run `make setup`")
    else:
        assert output.startswith("usage:")


def test_a_library_without_its_dependencies_is_told_to_set_up(tmp_path):
    """As where the clone itself is on the path of another Python."""
    code = f"import sys, runpy; sys.path.insert(0, {str(ROOT)!r}); sys.argv[1:] = ['--help']; "
    code += f"runpy.run_path({str(ROOT / 'pretrain' / 'train.py')!r}, run_name='__main__')"
    assert run(*BARE, "-c", code, cwd=tmp_path, status=1).startswith("error: not set up")


def test_a_user_without_a_home_has_the_temporary_folder(monkeypatch):
    """In a container: neither HOME nor a line in the list of users."""

    def unknown():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", unknown)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert portable_path("/x/run/backbone.pth") == "run/backbone.pth"
    assert cache_folder().is_relative_to(tempfile.gettempdir())


def test_one_place_changes_where_modules_are_looked_for():
    folders = ("intl_transfer", *FOLDERS)
    found = [
        str(file.relative_to(ROOT))
        for folder in folders
        for file in (ROOT / folder).rglob("*.py")
        if "sys.path" in file.read_text()
    ]
    assert found == ["intl_transfer/places.py"]


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy of the sources, as launchers make them, whose stages list their modules' files."""
    code = snapshot(ROOT, tmp_path_factory.mktemp("run") / "code")
    for script in ("pretrain/train.py", "detection/train_net.py"):
        text = (code / script).read_text()
        listing = (
            "print(*sorted(m.__file__ for n, m in sys.modules.items() if getattr(m, '__file__', 0)"
            f" and n.split('.')[0] in {('intl_transfer', *FOLDERS)}), sep='\\n')\n"
            "    print(*sys.path, sep='\\n', file=sys.stderr)"
        )
        assert "sys.exit(main())" in text
        (code / script).write_text(text.replace("sys.exit(main())", listing))
    return code


@pytest.mark.parametrize("script", ["pretrain/train.py", "detection/train_net.py"])
def test_a_copy_of_the_sources_uses_no_others(script, copy, tmp_path):
    """Run by hand in another folder, in the environment whose install leads to this clone."""
    done = subprocess.run(
        [sys.executable, str(copy / script)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=WITHOUT,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    files = done.stdout.split()
    assert len(files) > 30
    assert [file for file in files if not file.startswith(f"{copy}/")] == []
    path = done.stderr.splitlines()
    assert str(copy) in path
    assert str((copy / script).parent) not in path


def test_a_job_finds_its_copy_first_whatever_becomes_of_the_install(copy, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/theirs")
    command = [sys.executable, str(copy / "pretrain" / "train.py"), "--config", "x"]
    job = Job(
        key="a", stage="pretrain", target="a", command=command, resources={}, folder=".", title="a"
    )
    assert stage_job(job).environment["PYTHONPATH"] == f"{copy}{os.pathsep}/theirs"


def test_an_editable_install_has_the_stages_and_a_wheel_has_not(tmp_path):
    sources = tmp_path / "clone"
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "intl_transfer/__init__.py"):
        (sources / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, sources / name)
    for folder in FOLDERS:
        (sources / folder).mkdir()
        shutil.copyfile(ROOT / folder / "__init__.py", sources / folder / "__init__.py")
    shutil.copytree(ROOT / "configs", sources / "configs")
    code = "from setuptools import build_meta as b; b.build_{}({!r})"
    for kind in ("editable", "wheel"):
        (tmp_path / kind).mkdir()
        run(sys.executable, "-c", code.format(kind, str(tmp_path / kind)), cwd=sources)
        (packed,) = (tmp_path / kind).glob("*.whl")
        with zipfile.ZipFile(packed) as archive:
            archive.extractall(tmp_path / kind / "site")
    names = [path.name for path in (tmp_path / "wheel" / "site").iterdir()]
    assert "intl_transfer" in names
    assert set(FOLDERS).isdisjoint(names)
    code = f"import site; site.addsitedir({str(tmp_path / 'editable' / 'site')!r}); "
    code += "from importlib.util import find_spec as find; "
    code += f"print(*(find(name).origin for name in {('intl_transfer', *FOLDERS)}))"
    found = run(*BARE, "-c", code, cwd=tmp_path).split()
    requested = [sources / name / "__init__.py" for name in ("intl_transfer", *FOLDERS)]
    assert found == [str(file) for file in requested]
