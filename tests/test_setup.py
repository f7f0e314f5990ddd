from __future__ import annotations

import ast
import fcntl
import hashlib
import importlib.util
import io
import re
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

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


def test_what_is_missing_is_said_in_one_line(setup):
    with pytest.raises(setup.SetupError, match=r"Python 3\.9\.18 is too old: expected 3\.10"):
        setup.check_python((3, 9, 18))
    setup.check_python((3, 10, 0))
    with pytest.raises(setup.SetupError, match=r"3\.1 GB free at .*expected at least 8 GB"):
        setup.check_disk(3_100_000_000)
    setup.check_disk(9_000_000_000)


def test_what_is_installed_already_need_not_be_free_again(setup, tmp_path):
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "a").write_bytes(b"x" * 1000)
    (tmp_path / "b").write_bytes(b"x" * 24)
    assert setup.size(tmp_path) == 1024
    assert setup.size(tmp_path / "absent") == 0
    setup.check_disk(3_100_000_000, installed_bytes=5_000_000_000)
    with pytest.raises(setup.SetupError, match=r"2\.9 GB free at .*expected at least 3 GB"):
        setup.check_disk(2_900_000_000, installed_bytes=5_000_000_000)
    with pytest.raises(setup.SetupError, match=r"expected at least 1 GB"):
        setup.check_disk(500_000_000, installed_bytes=50_000_000_000)


def test_an_old_python_can_read_the_script(setup):
    # Python 3.6 knows neither `from __future__ import annotations` nor `list[int]`.
    tree = ast.parse(Path(setup.__file__).read_text(), feature_version=(3, 6))
    assert not any(isinstance(n, ast.ImportFrom) and n.module == "__future__" for n in tree.body)
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef):
            kinds = [*(a.annotation for a in function.args.args), function.returns]
            assert not any(isinstance(kind, ast.Subscript | ast.BinOp) for kind in kinds)


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (
            [
                "WARNING: Retrying (Retry(total=0)) after connection broken by "
                "'NewConnectionError(': Failed to establish a new connection: [Errno 111]",
                "ERROR: Could not find a version that satisfies the requirement torch",
                "ERROR: No matching distribution found for torch",
            ],
            "pip cannot reach its package index (NewConnectionError)",
        ),
        (
            ["WARNING: Retrying after NewConnectionError", "error: command 'gcc' failed"],
            "command 'gcc' failed",
        ),
        (
            [
                "ERROR: Cannot install torch because these package versions have conflicts.",
                "",
                "The conflict is caused by:",
                "    The user requested torch",
                "    The user requested (constraint) torch==9",
                "",
                "ERROR: ResolutionImpossible: for help visit the manual",
            ],
            "The user requested torch; The user requested (constraint) torch==9",
        ),
        (
            ["The virtual environment was not created because ensurepip is not available.", "x"],
            "apt-get install python3-venv",
        ),
        ([], "no output"),
    ],
)
def test_the_line_that_says_most_is_chosen(setup, output, expected):
    assert expected in setup.reason(output)


def test_a_half_made_or_another_environment_is_made_anew(setup, monkeypatch, tmp_path):
    venv = tmp_path / ".venv"
    monkeypatch.setattr(setup, "VENV", venv)
    monkeypatch.setattr(setup, "LOG", tmp_path / "setup.log")
    (tmp_path / "setup.log").touch()
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    assert not setup.is_whole_venv(version, system=False)  # interrupted before it had pip
    setup.make_venv(system=False)
    assert setup.is_whole_venv(version, system=False)
    assert not setup.is_whole_venv(version, system=True)
    assert not setup.is_whole_venv("3.99", system=False)
    monkeypatch.setattr(setup, "run", lambda *a: pytest.fail("a whole environment was made again"))
    setup.make_venv(system=False)


def test_packages_of_the_python_given_are_shared(setup, monkeypatch, tmp_path):
    """Also where that Python is one of a virtual environment, which venv alone does not share."""
    given = tmp_path / "given"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(given)], check=True)
    python = given / "bin" / "python"
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    where = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    packages = Path(where.stdout.strip())
    for name, text in {"torch": "", "detectron2": "", "detectron2/_C": None}.items():
        folder = packages / name
        if text is None:
            (packages / f"{name}.py").touch()
        else:
            folder.mkdir()
            (folder / "__init__.py").write_text(text)
    made = tmp_path / ".venv"
    (tmp_path / "setup.log").touch()
    code = (
        "import sys; from pathlib import Path\n"
        f"sys.path.insert(0, {str(ROOT / 'scripts')!r})\n"
        "import setup\n"
        f"setup.VENV, setup.LOG = Path({str(made)!r}), Path({str(tmp_path / 'setup.log')!r})\n"
        "assert setup.has_compiled_detectron2(sys.executable)\n"
        "setup.make_venv(system=True)\n"
    )
    subprocess.run([python, "-c", code], check=True)
    code = "from detectron2 import _C; print(_C.__file__)"
    found = subprocess.run([made / "bin" / "python", "-c", code], capture_output=True, text=True)
    assert found.stdout.strip() == str(packages / "detectron2" / "_C.py")
    script = ROOT / "scripts" / "install_detectron2.py"
    left = subprocess.run([made / "bin" / "python", script], capture_output=True, text=True)
    assert left.stdout == f"detectron2 is there already: {packages / 'detectron2'}\n"


def run_main(setup, monkeypatch, tmp_path, install, *arguments):
    venv = tmp_path / ".venv"
    (venv / "bin").mkdir(parents=True, exist_ok=True)
    (venv / "bin" / "python").touch()
    monkeypatch.setattr(setup, "VENV", venv)
    monkeypatch.setattr(setup, "STAMP", venv / "setup.stamp")
    monkeypatch.setattr(setup, "UNFINISHED", venv / "setup.unfinished")
    monkeypatch.setattr(setup, "installed", lambda: "torch==1")
    monkeypatch.setattr(setup, "LOG", tmp_path / "logs" / "setup.log")

    def installs(dev, lock):
        install(dev)
        (setup.packages() / "intl_transfer-0.1.0.dist-info").mkdir(parents=True, exist_ok=True)

    monkeypatch.setattr(setup, "install", installs)
    monkeypatch.setattr(setup, "check_disk", lambda *sizes: None)
    return setup.main(arguments)


def test_a_second_set_up_does_nothing_until_something_changes(setup, monkeypatch, tmp_path, capsys):
    calls = []
    for _ in range(2):
        assert run_main(setup, monkeypatch, tmp_path, calls.append) == 0
    assert calls == [False]
    assert "set up already" in capsys.readouterr().out
    original = setup.INPUTS
    monkeypatch.setattr(setup, "INPUTS", (*original, "Makefile"))
    assert run_main(setup, monkeypatch, tmp_path, calls.append) == 0
    assert calls == [False, False]


def test_what_developers_have_is_enough_for_users(setup, monkeypatch, tmp_path):
    calls = []
    for arguments in ((), ("--dev",), (), ("--dev",)):
        assert run_main(setup, monkeypatch, tmp_path, calls.append, *arguments) == 0
    assert calls == [False, True]


def test_a_set_up_that_fails_breaks_nothing(setup, monkeypatch, tmp_path, capsys):
    """No network: what is there is as it was, and counts again once the files are as they were."""

    def fail(dev):
        raise setup.SetupError("torch: no network (whole log: x)")

    assert run_main(setup, monkeypatch, tmp_path, lambda dev: None) == 0
    original = setup.INPUTS
    monkeypatch.setattr(setup, "INPUTS", (*original, "Makefile"))
    assert run_main(setup, monkeypatch, tmp_path, fail) == 1
    assert capsys.readouterr().err == "error: torch: no network (whole log: x)\n"
    monkeypatch.setattr(setup, "INPUTS", original)
    calls = []
    assert run_main(setup, monkeypatch, tmp_path, calls.append) == 0
    assert calls == []  # set up already
    # Where it failed in the middle, what is there is neither the old nor the new.
    monkeypatch.setattr(setup, "INPUTS", (*original, "Makefile"))

    def halfway(dev):
        monkeypatch.setattr(setup, "installed", lambda: "torch==2")
        fail(dev)

    assert run_main(setup, monkeypatch, tmp_path, halfway) == 1
    monkeypatch.setattr(setup, "INPUTS", original)
    assert run_main(setup, monkeypatch, tmp_path, calls.append) == 0
    assert calls == [False]


def test_in_the_activated_environment_nothing_is_installed_anew(setup, monkeypatch, tmp_path):
    """Its python3 is the one that made it, by another name."""
    made = tmp_path / ".venv"
    base = getattr(sys, "_base_executable", sys.executable)
    subprocess.run([base, "-m", "venv", "--without-pip", str(made)], check=True)
    code = (
        "import sys; from pathlib import Path\n"
        f"sys.path.insert(0, {str(ROOT / 'scripts')!r})\n"
        "import setup\n"
        f"setup.VENV = Path({str(made)!r})\n"
        "setup.STAMP, setup.UNFINISHED = setup.VENV / 'setup.stamp', setup.VENV / 'unfinished'\n"
        "setup.LOG = setup.VENV / 'setup.log'\n"
        "setup.installed = lambda: ''\n"
        "setup.check_disk = lambda *sizes: None\n"
        "def install(dev, lock):\n"
        "    print('installs')\n"
        "    (setup.packages() / 'intl_transfer-0.1.0.dist-info').mkdir()\n"
        "setup.install = install\n"
        "print(setup.outside(), setup.main())\n"
    )

    def run(python):
        done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
        return done.stdout

    assert run(base) == f"installs\nset up in 0 s: {made}\nNone 0\n"
    again = run(made / "bin" / "python3")
    assert again.startswith(f"set up already: {made}\n")
    assert str(made) not in again.splitlines()[1]  # and it knows who could make it again


@pytest.mark.parametrize("inside", [False, True])
def test_packages_of_another_python_or_none_are_no_set_up(setup, monkeypatch, tmp_path, inside):
    """After an upgrade of the system, of whose Python that of `.venv` is a link, and a cleaning."""
    assert run_main(setup, monkeypatch, tmp_path, lambda dev: None) == 0
    monkeypatch.setattr(setup, "is_inside", lambda: inside)
    assert setup.is_set_up(False)
    with monkeypatch.context() as later:
        later.setattr(sys, "version", "3.99.1 (main)")
        assert not setup.is_set_up(False)
    shutil.rmtree(setup.VENV / "lib")
    assert not setup.is_set_up(False)


def test_an_environment_may_lie_on_another_disk(setup, monkeypatch, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / ".venv").symlink_to(tmp_path / "disk")
    monkeypatch.setattr(setup, "VENV", tmp_path / ".venv")

    def run(title, command):
        subprocess.run([*command[:3], "--without-pip", *command[3:]], check=True)

    monkeypatch.setattr(setup, "run", run)
    setup.make_venv(system=False)
    assert (tmp_path / "disk" / "bin" / "python").exists()
    assert setup.packages().is_dir()
    monkeypatch.setenv("PATH", f"{tmp_path}/disk/bin:/usr/bin")
    assert setup.without_venv()["PATH"] == "/usr/bin"


def test_a_failing_step_gives_its_own_last_word(setup, monkeypatch, tmp_path):
    monkeypatch.setattr(setup, "LOG", tmp_path / "setup.log")
    (tmp_path / "setup.log").touch()
    setup.run("fine", [sys.executable, "-c", "print('ok')"])
    # Bytes that are no text, before the step, shift nothing.
    (tmp_path / "setup.log").write_bytes("⠋ …".encode() * 100 + b"\xff\n")
    code = "print('Collecting x'); print('ERROR: No matching distribution found for x'); exit(3)"
    with pytest.raises(setup.SetupError, match=r"bad: No matching .* for x .whole"):
        setup.run("bad", [sys.executable, "-c", code])


def test_two_set_ups_at_once_are_one(setup, monkeypatch, tmp_path, capsys):
    """`make demo` and `make test` in a fresh clone: the second cleared the first one's `.venv`."""
    (tmp_path / "logs").mkdir()
    calls = []
    with open(tmp_path / "logs" / "setup.lock", "a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert run_main(setup, monkeypatch, tmp_path, calls.append) == 1
    assert calls == []
    assert "another set-up of this clone is running; wait for it" in capsys.readouterr().err
    assert run_main(setup, monkeypatch, tmp_path, calls.append) == 0
    assert calls == [False]


def test_a_folder_that_cannot_be_written_is_one_line(setup, monkeypatch, tmp_path, capsys):
    (tmp_path / "logs").touch()
    assert run_main(setup, monkeypatch, tmp_path, lambda dev: None) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path / 'logs'}: File exists; ")
    assert len(error.splitlines()) == 1


def test_what_is_switched_off_is_off():
    def shown(*words):
        command = ["make", "--dry-run", "--no-print-directory", *words]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout

    assert "--dev" in shown("setup", "DEV=1")
    assert "--dev" not in shown("setup", "DEV=0")
    assert "--quick" not in shown("demo", "QUICK=no")
    assert '"with space"' in shown("wheelhouse", "WHEELHOUSE=with space")


def test_the_shells_environment_does_not_bend_what_is_installed(setup, monkeypatch, tmp_path):
    """A site's PIP_USER is an error within `.venv`; what PYTHONPATH has would not be installed."""
    monkeypatch.setattr(setup, "LOG", tmp_path / "setup.log")
    (tmp_path / "setup.log").touch()
    hidden = ("PYTHONPATH", "PIP_TARGET", "PIP_PREFIX")
    for name in hidden:
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("PIP_USER", "yes")
    monkeypatch.setenv("PIP_INDEX_URL", "kept")
    code = "import os; print({k: v for k, v in os.environ.items() if k[:3] in ('PIP', 'PYT')})"
    setup.run("environment", [sys.executable, "-c", code])
    said = ast.literal_eval((tmp_path / "setup.log").read_text())
    assert not said.keys() & set(hidden)
    assert (said["PIP_USER"], said["PIP_INDEX_URL"]) == ("0", "kept")


def test_this_environment_is_checked_in_under_three_seconds(setup):
    """By the Python that made it: another would make it anew, below the running tests."""
    maker = setup.read_stamp().get("python", {}).get("executable", "")
    if not setup.is_set_up(dev=False) or not Path(maker).exists():
        pytest.skip("not run from an environment that `make setup` made of these files")
    began = time.monotonic()
    command = ["make", "setup", f"PYTHON={maker}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert "set up already" in done.stdout
    assert time.monotonic() - began < 3


@pytest.fixture
def wheelhouse():
    return load("wheelhouse")


def test_the_lock_is_that_of_the_constraints(wheelhouse):
    """What `make lock` wrote has every pin of this Python, and a hash for each."""
    lock = ROOT / "locks" / "python3.11-linux-x86_64.txt"
    if wheelhouse.tested_lock() != lock:
        pytest.skip(f"tested elsewhere, and this is {wheelhouse.tested_lock().stem}")
    pins = [Requirement(pin) for pin in wheelhouse.applicable(wheelhouse.CONSTRAINTS.read_text())]
    found = wheelhouse.read_lock(lock)
    assert set(found) == {f"{canonicalize_name(p.name)}{p.specifier}" for p in pins}
    assert all(re.fullmatch("[0-9a-f]{64}", value) for value in found.values())


@pytest.fixture
def small_wheelhouse(wheelhouse, tmp_path):
    """A wheelhouse of one package."""
    folder = tmp_path / "wheelhouse"
    folder.mkdir()
    wheel = folder / "toy_package-1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as out:
        info = "toy_package-1.2.dist-info"
        out.writestr("toy_package.py", "VALUE = 7\n")
        out.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: toy-package\nVersion: 1.2\n")
        out.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        out.writestr(f"{info}/RECORD", "")
    found = wheelhouse.hashes(folder)
    assert found == {"toy-package==1.2": hashlib.sha256(wheel.read_bytes()).hexdigest()}
    wheelhouse.write_lock(folder / "lock.txt", found, dev=False)
    return folder


def test_pip_demands_the_hashes_of_a_wheelhouse(small_wheelhouse, tmp_path):
    lock = small_wheelhouse / "lock.txt"
    options = ["--no-index", "--find-links", str(small_wheelhouse), "--require-hashes", "-r", lock]
    target = ["--target", str(tmp_path / "site")]
    command = [sys.executable, "-m", "pip", "install", *options, *target]
    subprocess.run(command, check=True, capture_output=True)
    assert (tmp_path / "site" / "toy_package.py").read_text() == "VALUE = 7\n"
    with zipfile.ZipFile(next(small_wheelhouse.glob("*.whl")), "a") as out:
        out.writestr("more.py", "")
    refused = subprocess.run([*command, "--upgrade"], capture_output=True, text=True)
    assert refused.returncode != 0
    assert "DO NOT MATCH THE HASHES" in refused.stderr


def test_another_archive_than_was_tested_is_refused(wheelhouse, tmp_path):
    found = {"a==1": "aa", "b==2": "bb"}
    wheelhouse.compare(found, {**found, "c==3": "cc"})
    for tested in ({"a==1": "aa", "b==2": "xx"}, {"a==1": "aa"}, {"a==1": "aa", "b==3": "bb"}):
        with pytest.raises(wheelhouse.WheelhouseError, match=r"not what was tested .*: b==2;"):
            wheelhouse.compare(found, tested)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(wheelhouse.WheelhouseError, match=r"notes\.txt is neither a wheel"):
        wheelhouse.hashes(tmp_path)
    (tmp_path / "notes.txt").unlink()
    for version in (1, 2):
        (tmp_path / f"a-{version}.tar.gz").touch()
    with pytest.raises(wheelhouse.WheelhouseError, match="holds a twice"):
        wheelhouse.hashes(tmp_path)


def test_a_wheelhouse_of_another_python_or_half_made_is_refused(setup, small_wheelhouse):
    lock = small_wheelhouse / "lock.txt"
    assert setup.whole_wheelhouse(str(small_wheelhouse)) == lock
    assert setup.whole_wheelhouse(None) is None
    with pytest.raises(setup.SetupError, match="make wheelhouse DEV=1"):
        setup.whole_wheelhouse(str(small_wheelhouse), True)
    lock.write_text("# python2.7-linux-x86_64 dev\n")
    with pytest.raises(setup.SetupError, match=r"was made for python2\.7.*this is python3"):
        setup.whole_wheelhouse(str(small_wheelhouse))
    lock.unlink()
    with pytest.raises(setup.SetupError, match="made to its end"):
        setup.whole_wheelhouse(str(small_wheelhouse))


def test_both_container_recipes_take_the_same_steps():
    """What the Dockerfile runs is what Apptainer runs; no other instruction than these is known."""
    text = (ROOT / "containers" / "Dockerfile").read_text()
    lines = [line.split(" ", 1) for line in text.splitlines() if line and line[0] != "#"]
    assert {word for word, _ in lines} <= {"FROM", "RUN", "WORKDIR", "COPY", "ARG", "ENV", "CMD"}
    runs = [rest for word, rest in lines if word == "RUN"]
    recipe = (ROOT / "containers" / "intl-transfer.def").read_text()
    post = recipe.partition("%post")[2].partition("%environment")[0].strip().splitlines()
    assert [line.strip() for line in post if not line.strip().startswith("cd ")] == runs
    image = next(rest for word, rest in lines if word == "FROM")
    assert f"From: {image}\n" in recipe


def archive(path: Path, escape: bool = False) -> Path:
    """A stand-in for the archive, laid out alike."""
    files = {
        "detectron2/__init__.py": "__version__ = '0.6'\n",
        "detectron2/projects/__init__.py": "",
        "projects/PointRend/point_rend/__init__.py": "",
        "projects/DeepLab/deeplab/__init__.py": "",
        "projects/Panoptic-DeepLab/panoptic_deeplab/__init__.py": "",
        "detectron2/model_zoo/__init__.py": "",
        "detectron2/model_zoo/configs/Base.yaml": "VERSION: 2",
        "detectron2/model_zoo/configs/COCO/a.yaml": "VERSION: 2",
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


def test_what_is_laid_out_installs_whole(installer, tmp_path):
    """With the model zoo's configurations, which are no Python files."""
    sdist = archive(tmp_path / "a.tar.gz")
    tree = installer.lay_out(installer.unpack(sdist, tmp_path / "u"), tmp_path / "tree")
    options = ["--no-deps", "--no-build-isolation", "--target", str(tmp_path / "site")]
    command = [sys.executable, "-m", "pip", "install", "--no-index", *options, str(tree)]
    subprocess.run(command, check=True, capture_output=True)
    site = tmp_path / "site"
    for name in ("Base.yaml", "COCO/a.yaml"):
        assert (site / "detectron2" / "model_zoo" / "configs" / name).read_text() == "VERSION: 2"
    assert (site / "detectron2" / "projects" / "point_rend" / "__init__.py").exists()
    assert [p.name for p in site.glob("*.dist-info")] == ["detectron2-0.6.dist-info"]


@pytest.mark.parametrize("filtered", [True, False])
def test_an_archive_cannot_write_outside_its_folder(installer, tmp_path, monkeypatch, filtered):
    if not filtered:  # as in the first releases of Python 3.10 and 3.11
        monkeypatch.delattr(tarfile, "data_filter")
    sdist = archive(tmp_path / "a.tar.gz", escape=True)
    with pytest.raises((tarfile.TarError, installer.InstallError)):
        installer.unpack(sdist, tmp_path / "deep" / "u")
    assert not (tmp_path / "escaped").exists()
    assert not (tmp_path / "deep" / "escaped").exists()


def test_an_importable_detectron2_is_left_alone(installer, monkeypatch, capsys):
    monkeypatch.setattr(installer, "download", lambda *a: pytest.fail("download was called"))
    monkeypatch.setattr(sys, "argv", ["x"])
    assert installer.main() == 0
    assert "is there already" in capsys.readouterr().out


def test_what_an_interruption_left_is_not_taken_for_whole(installer, monkeypatch, tmp_path):
    monkeypatch.setattr(installer, "UNFINISHED", tmp_path / "unfinished")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "detectron2", raising=False)  # of another test
    package = tmp_path / "detectron2"
    package.mkdir()
    assert installer.installed() is None  # no __init__.py yet
    (package / "__init__.py").touch()
    importlib.invalidate_caches()
    assert installer.installed() == package

    sdist = archive(tmp_path / "a.tar.gz")
    monkeypatch.setattr(installer, "SHA256", hashlib.sha256(sdist.read_bytes()).hexdigest())
    monkeypatch.setattr(sys, "argv", ["x", "--sdist", str(sdist)])
    shutil.rmtree(package)

    def interrupted(*arguments):
        package.mkdir(exist_ok=True)
        (package / "__init__.py").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(installer, "pip", interrupted)
    with pytest.raises(KeyboardInterrupt):
        installer.main()
    importlib.invalidate_caches()
    assert installer.installed() is None
    monkeypatch.setattr(installer, "pip", lambda *arguments: None)
    assert installer.main() == 0
    assert installer.installed() == package


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
