"""Some of the faults that ``make faults`` tries in full."""

from __future__ import annotations

import shutil

import pytest

from tests.faults.campaign import Stand, sample
from tests.faults.injector import MODES

# Faults of each command, drawn from all kinds of sites.
NUMBERS = {"pretrain": 6, "evaluate": 6, "fine-tune": 2, "convert": 4, "convert-safetensors": 4}
NUMBERS |= {"collect": 4}


@pytest.fixture(scope="module")
def stand(tmp_path_factory):
    if shutil.which("cc") is None:
        pytest.skip("no C compiler (cc) to build the injector with")
    made = Stand(tmp_path_factory.mktemp("faults"))
    yield made
    made.close()


@pytest.mark.parametrize("name", list(NUMBERS))
def test_after_a_fault_the_same_command_ends_as_if_there_had_been_none(stand, name):
    for site, mode in sample(stand, name, NUMBERS[name], seed=20):
        problem = stand.try_one(name, site, MODES[mode])
        assert problem is None, f"{mode} at {stand.what(name, site)}: {problem}"


def test_the_injector_sees_what_a_command_does(stand):
    """Else a fault that never happens would pass for one that was survived."""
    stand.prepare("evaluate")
    kinds = {stand.what("evaluate", site).partition(" ")[0] for site in stand.chosen("evaluate")}
    assert kinds >= {"mkdir", "open", "write", "fsync", "rename"}
    ended = [
        stand.injector.run(stand.commands["evaluate"].words(folder), folder, 30, mode).status
        for mode, folder in ((MODES[m], stand.scratch / f"seen-{m}") for m in ("kill", "half"))
        if folder.mkdir() is None
    ]
    assert ended == [-9, -9]
