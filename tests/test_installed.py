"""A wheel, built once and used from elsewhere: what it offers works, and it knows its revision."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import intl_transfer
from intl_transfer.cli import COMMANDS, main
from intl_transfer.completion import whole_parser
from intl_transfer.runs.directory import STAMP, git_state

ROOT = Path(__file__).resolve().parents[1]
GIT = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]


def git(folder, *words):
    done = subprocess.run([*GIT, "-C", str(folder), *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def committed(folder):
    """Makes a folder a repository with all its files; gives back the revision."""
    git(folder, "init", "-q")
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "all", "--allow-empty")
    return git(folder, "rev-parse", "HEAD")


@pytest.fixture(scope="session")
def installed(tmp_path_factory):
    """(folder of the installed package, revision that it was built from).

    The folder lies in a repository of somebody else.
    """
    sources = tmp_path_factory.mktemp("sources") / "clone"
    sources.mkdir()
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-co", "--exclude-standard", "-z"],
        capture_output=True,
        text=True,
    ).stdout.split("\0")
    own = ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", ".gitignore")
    for name in listed:
        if name in own or name.startswith(("intl_transfer/", "configs/")):
            (sources / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, sources / name)
    revision = committed(sources)
    theirs = tmp_path_factory.mktemp("theirs")
    (theirs / "their.txt").write_text("theirs")
    committed(theirs)
    # By way of an sdist, which has no git: what an index would serve.
    build = [sys.executable, "setup.py", "-q", "sdist"]
    subprocess.run(build, cwd=sources, capture_output=True, check=True, timeout=200)
    (packed,) = (sources / "dist").glob("*.tar.gz")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "-q", "--no-deps"]
    pip += ["--no-build-isolation", "--no-index", "--target", str(theirs / "site"), str(packed)]
    done = subprocess.run(pip, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return theirs / "site", revision


def run(site, folder, *words, status=0):
    """Runs the installed command in a folder that is not the clone."""
    done = subprocess.run(
        [sys.executable, "-m", "intl_transfer", *words],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"},
        timeout=200,
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
def test_an_installed_package_knows_its_revision_and_what_needs_the_clone(installed, tmp_path):
    site, revision = installed
    report = json.loads(run(site, tmp_path, "doctor", "--json"))
    assert report["revision"] == {"revision": revision, "dirty": False}
    assert report["clone"] is None
    output = run(site, tmp_path, "doctor")
    assert "a clone of the repository is needed for pretraining, fine-tuning detectors" in output
    assert "needs a clone" in run(site, tmp_path, "doctor", "--cluster", "local", status=2)


@pytest.mark.slow
def test_configurations_are_found_from_an_installed_package(installed, tmp_path):
    """Every one of the clone, byte for byte; and one figure and one evaluation use theirs."""
    site, _ = installed
    for stage in ("analysis", "detection", "evaluation"):
        ours = {path.name: path.read_bytes() for path in (ROOT / "configs" / stage).glob("*.yaml")}
        theirs = (site / "intl_transfer" / "configs" / stage).glob("*.yaml")
        assert {path.name: path.read_bytes() for path in theirs} == ours
    words = ["evaluate", "--weights", "random", "--config"]
    output = run(site, tmp_path, *words, "cifar10_kn", status=2)
    assert "Did you mean 'cifar10_knn'" in output
    assert f"looked in {site}/intl_transfer/configs/evaluation/" in output
    output = run(site, tmp_path, *words, "cifar10_knn", status=2)
    assert "datasets/cifar10" in output  # past the configuration, no data
    run(site, tmp_path, "figure", "theorem1", "--quick", "--out", str(tmp_path / "drawn"))
    assert list((tmp_path / "drawn").glob("*.png"))


def test_only_the_repository_that_tracks_the_package_is_asked(tmp_path):
    package = tmp_path / "site" / "intl_transfer" / "runs"
    package.mkdir(parents=True)
    (package / "directory.py").write_text("")
    (tmp_path / "theirs").write_text("theirs")
    (tmp_path / ".gitignore").write_text("site/\n")
    committed(tmp_path)
    unknown = {"revision": None, "dirty": None}
    assert git_state(tmp_path / "site") == unknown
    (tmp_path / ".gitignore").unlink()
    revision = committed(tmp_path)  # vendored: their commit says what the files are
    assert git_state(tmp_path / "site") == {"revision": revision, "dirty": False}
    stamp = tmp_path / "site" / "intl_transfer" / STAMP
    stamp.write_text('{"revision": "abc", "dirty": true}')
    assert git_state(tmp_path / "site") == {"revision": "abc", "dirty": True}
    stamp.write_text("{")  # damaged: what git says, and there is a change now
    assert git_state(tmp_path / "site") == {"revision": revision, "dirty": True}


def test_alone_the_command_shows_its_table(capsys):
    assert main([]) == 2
    printed = capsys.readouterr().out
    assert all(f"\n  {name} " in printed for name in COMMANDS)


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_knows_every_command_and_option(shell, capsys):
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(name in script for name in COMMANDS)
    assert "--check-expected" in script
    if shutil.which(shell):
        done = subprocess.run([shell, "-n"], input=script, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_bash_completes(capsys):
    """What readline would offer for `intl-transfer eval` and `intl-transfer doctor --g`."""
    main(["completion", "bash"])
    script = capsys.readouterr().out
    function = re.search(r"^complete .*-F (\S+) intl-transfer$", script, re.M)[1]
    for words, offered in ((["eval"], "evaluate"), (["doctor", "--g"], "--gpu")):
        line = " ".join(f"'{word}'" for word in ("intl-transfer", *words))
        ask = f"COMP_WORDS=({line}); COMP_CWORD={len(words)}; {function}; echo ${{COMPREPLY[@]}}"
        done = subprocess.run(["bash", "-c", f"{script}\n{ask}"], capture_output=True, text=True)
        assert done.stdout.split() == [offered], done.stderr


def test_the_whole_parser_is_that_of_each_command():
    assert "evaluate" in whole_parser().format_help()


def test_version_changelog_and_citation_are_one():
    version = intl_transfer.__version__
    heading = re.search(r"^## (\S+)( \(unreleased\)| \(\d{4}-\d\d-\d\d\))$", changelog(), re.M)
    assert heading is not None
    assert heading[1] == version
    assert citation()["version"] == version
    assert 'version = {attr = "intl_transfer.__version__"}' in (ROOT / "pyproject.toml").read_text()


def changelog():
    return (ROOT / "CHANGELOG.md").read_text()


def citation():
    return yaml.safe_load((ROOT / "CITATION.cff").read_text())


def test_the_citation_has_what_the_format_requires():
    """The fields of Citation File Format 1.2.0; its whole schema accepted the file when written."""
    found = citation()
    required = {"authors", "cff-version", "message", "title"}
    known = {"abstract", "keywords", "license", "preferred-citation", "type", "version"}
    known |= {"date-released"}
    assert required <= found.keys() <= required | known
    assert found["cff-version"] == "1.2.0"
    assert found["type"] == "software"
    paper = found["preferred-citation"]
    assert {"authors", "title", "type"} <= paper.keys()
    assert paper["type"] == "conference-paper"
    assert [author["family-names"] for author in paper["authors"]][:2] == ["Weng", "Ni"]
