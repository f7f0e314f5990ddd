from __future__ import annotations

import hashlib
import importlib.util
import io
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def load(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def setup():
    return load("setup")


@pytest.fixture
def installer():
    return load("install_detectron2")


def test_what_is_missing_is_said_in_one_line(setup, monkeypatch):
    with pytest.raises(setup.SetupError, match=r"Python 3\.9\.18 is too old: expected 3\.10"):
        setup.check_python((3, 9, 18))
    setup.check_python((3, 10, 0))
    with pytest.raises(setup.SetupError, match=r"3\.1 GB free at .*expected at least 8 GB"):
        setup.check_disk(3_100_000_000)
    setup.check_disk(9_000_000_000)
    setup.check_compiler()
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(setup.SetupError, match=r"no C compiler found .looked for cc, gcc, clang"):
        setup.check_compiler()


def run_main(setup, monkeypatch, tmp_path, install):
    venv = tmp_path / ".venv"
    (venv / "bin").mkdir(parents=True, exist_ok=True)
    (venv / "bin" / "python").touch()
    monkeypatch.setattr(setup, "VENV", venv)
    monkeypatch.setattr(setup, "STAMP", venv / "setup.stamp")
    monkeypatch.setattr(setup, "LOG", tmp_path / "logs" / "setup.log")
    monkeypatch.setattr(setup, "install", install)
    return setup.main()


def test_a_second_set_up_does_nothing_until_something_changes(setup, monkeypatch, tmp_path, capsys):
    calls = []
    assert run_main(setup, monkeypatch, tmp_path, lambda: calls.append(1)) == 0
    assert run_main(setup, monkeypatch, tmp_path, lambda: calls.append(1)) == 0
    assert calls == [1]
    assert "set up already" in capsys.readouterr().out
    original = setup.INPUTS
    monkeypatch.setattr(setup, "INPUTS", (*original, "Makefile"))
    assert run_main(setup, monkeypatch, tmp_path, lambda: calls.append(1)) == 0
    assert calls == [1, 1]


def test_an_interrupted_set_up_is_taken_up_again(setup, monkeypatch, tmp_path, capsys):
    def fail():
        raise setup.SetupError("torch: no network (whole log: x)")

    assert run_main(setup, monkeypatch, tmp_path, fail) == 1
    assert capsys.readouterr().err == "error: torch: no network (whole log: x)\n"
    calls = []
    assert run_main(setup, monkeypatch, tmp_path, lambda: calls.append(1)) == 0
    assert calls == [1]


def test_a_failing_step_gives_its_own_last_word(setup, monkeypatch, tmp_path):
    monkeypatch.setattr(setup, "LOG", tmp_path / "setup.log")
    (tmp_path / "setup.log").touch()
    setup.run("fine", [sys.executable, "-c", "print('ok')"])
    code = "print('Collecting x'); print('ERROR: No matching distribution found for x'); exit(3)"
    with pytest.raises(setup.SetupError, match=r"bad: No matching .* for x .whole"):
        setup.run("bad", [sys.executable, "-c", code])


def test_this_environment_is_checked_in_under_three_seconds():
    if not (ROOT / ".venv" / "setup.stamp").exists():
        pytest.skip("not run from an environment that `make setup` made")
    began = time.monotonic()
    done = subprocess.run(["make", "setup"], cwd=ROOT, capture_output=True, text=True)
    if "set up already" not in done.stdout:
        pytest.skip("`make setup` has another Python than the one that made .venv")
    assert time.monotonic() - began < 3


def archive(path: Path, escape: bool = False) -> Path:
    """A stand-in for the archive, laid out alike."""
    files = {
        "detectron2/__init__.py": "__version__ = '0.6'\n",
        "detectron2/projects/__init__.py": "",
        "projects/PointRend/point_rend/__init__.py": "",
        "projects/DeepLab/deeplab/__init__.py": "",
        "projects/Panoptic-DeepLab/panoptic_deeplab/__init__.py": "",
        "LICENSE": "Apache",
    }
    if escape:
        files["../../escaped"] = "x"
    with tarfile.open(path, "w:gz") as out:
        for name, text in files.items():
            info = tarfile.TarInfo(f"pb1-detectron2-0.6/{name}")
            info.size = len(text)
            out.addfile(info, io.BytesIO(text.encode()))
    return path


def test_a_wrong_hash_installs_nothing(installer, tmp_path, monkeypatch, capsys):
    sdist = archive(tmp_path / "a.tar.gz")
    found = hashlib.sha256(sdist.read_bytes()).hexdigest()
    with pytest.raises(installer.InstallError, match=f"sha256 is {found}, expected 5d2e9e51"):
        installer.check_hash(sdist)
    with pytest.raises(installer.InstallError, match="is not a file"):
        installer.check_hash(tmp_path / "absent.tar.gz")
    monkeypatch.setattr(installer.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(installer, "pip", lambda *a: pytest.fail("pip was called"))
    monkeypatch.setattr(sys, "argv", ["x", "--sdist", str(sdist)])
    assert installer.main() == 1
    assert capsys.readouterr().err.startswith("error: ")


def test_the_package_is_laid_out_as_upstream_does(installer, tmp_path, monkeypatch):
    sdist = archive(tmp_path / "a.tar.gz")
    monkeypatch.setattr(installer, "SHA256", hashlib.sha256(sdist.read_bytes()).hexdigest())
    installer.check_hash(sdist)
    tree = installer.lay_out(installer.unpack(sdist, tmp_path / "u"), tmp_path / "tree")
    for name in ("point_rend", "deeplab", "panoptic_deeplab"):
        assert (tree / "detectron2" / "projects" / name / "__init__.py").exists()
    assert 'name = "detectron2"' in (tree / "pyproject.toml").read_text()


def test_an_archive_cannot_write_outside_its_folder(installer, tmp_path):
    sdist = archive(tmp_path / "a.tar.gz", escape=True)
    with pytest.raises(tarfile.TarError):
        installer.unpack(sdist, tmp_path / "deep" / "u")
    assert not (tmp_path / "escaped").exists()
    assert not (tmp_path / "deep" / "escaped").exists()


def test_an_importable_detectron2_is_left_alone(installer, monkeypatch, capsys):
    monkeypatch.setattr(installer, "download", lambda *a: pytest.fail("download was called"))
    monkeypatch.setattr(sys, "argv", ["x"])
    assert installer.main() == 0
    assert "is there already" in capsys.readouterr().out


def test_pips_word_on_hashes_becomes_one_line(installer, monkeypatch):
    class Done:
        returncode = 1
        stdout = ""
        stderr = (
            "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.\n"
            "    pb1-detectron2==0.6:\n        Expected sha256 aaa\n             Got        bbb\n"
        )

    monkeypatch.setattr(installer.subprocess, "run", lambda *a, **k: Done)
    with pytest.raises(installer.InstallError, match="sha256 is bbb, expected"):
        installer.pip("download")
