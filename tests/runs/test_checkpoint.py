from __future__ import annotations

import os
import pathlib
from collections import OrderedDict

import numpy as np
import pytest
import torch

from intl_transfer.errors import UserError
from intl_transfer.runs.checkpoint import (
    list_checkpoints,
    load_newest,
    read_checkpoint,
    save_checkpoint,
    set_aside,
    step_of,
)
from intl_transfer.runs.finite import StateNotFiniteError


def state(value: float) -> dict:
    return {"model": {"weight": torch.full((100, 100), value)}, "progress": {"step": int(value)}}


def test_keeps_the_newest(tmp_path):
    for step in (9, 10, 100):
        save_checkpoint(tmp_path, step, state(step), keep=2)
    assert [p.name for p in list_checkpoints(tmp_path)] == ["step_00000100.pt", "step_00000010.pt"]
    path, found = load_newest(tmp_path)
    assert path.name == "step_00000100.pt"
    assert found["progress"]["step"] == 100
    assert torch.equal(found["model"]["weight"], torch.full((100, 100), 100.0))


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "text"])
def test_a_damaged_one_is_named_and_passed_over(tmp_path, damage):
    save_checkpoint(tmp_path, 1, state(1))
    newest = save_checkpoint(tmp_path, 2, state(2))
    data = bytearray(newest.read_bytes())
    if damage == "truncated":
        data = data[: len(data) // 2]
    elif damage == "flipped":
        data[len(data) // 2] ^= 1
    elif damage == "empty":
        data = bytearray()
    else:
        data = bytearray(b"not a checkpoint")
    newest.write_bytes(data)
    with pytest.warns(UserWarning, match=r"skipped: .*step_00000002\.pt is damaged"):
        path, found = load_newest(tmp_path)
    assert path.name == "step_00000001.pt"
    assert found["progress"]["step"] == 1


@pytest.mark.parametrize("keep", [1, 2])
def test_new_ones_stay_beside_later_damaged_ones(tmp_path, keep):
    is_milestone = (4).__eq__
    for step in (4, 8, 9):
        save_checkpoint(tmp_path, step, state(step), keep, is_milestone)
    for path in list_checkpoints(tmp_path)[:-1]:  # what is left of 8 and 9
        path.write_bytes(b"")
    for step in (5, 6):  # continued from 4
        save_checkpoint(tmp_path, step, state(step), keep, is_milestone)
        with pytest.warns(UserWarning, match="skipped"):
            path, _ = load_newest(tmp_path)
        assert step_of(path) == step
    for step in (7, 8, 9):
        save_checkpoint(tmp_path, step, state(step), keep, is_milestone)
    assert [step_of(path) for path in list_checkpoints(tmp_path)] == [*[9, 8][:keep], 4]


def test_only_damaged_ones_is_an_error_not_a_fresh_start(tmp_path):
    save_checkpoint(tmp_path, 1, state(1)).write_bytes(b"")
    with (
        pytest.warns(UserWarning, match="skipped"),
        pytest.raises(UserError, match="none of the 1 checkpoints"),
    ):
        load_newest(tmp_path)
    assert load_newest(tmp_path / "absent") is None


def test_foreign_and_dangerous_files_are_refused(tmp_path):
    external = tmp_path / "external.pt"
    torch.save({"model": {}}, external)
    with pytest.raises(UserError, match="not a checkpoint of this project"):
        read_checkpoint(external)
    dangerous = tmp_path / "dangerous.pt"
    torch.save({"format": "intl-transfer checkpoint", "schema": 1, "x": os.getcwd}, dangerous)
    with pytest.raises(UserError, match="not a checkpoint"):
        read_checkpoint(dangerous)
    with pytest.raises(UserError, match="does not exist"):
        read_checkpoint(tmp_path / "absent.pt")


def test_newer_schema_is_refused(tmp_path):
    path = tmp_path / "new.pt"
    torch.save({"format": "intl-transfer checkpoint", "schema": 2}, path)
    with pytest.raises(UserError, match="schema 2, this version reads up to 1"):
        read_checkpoint(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("part", ["model", "target", "optimizer"])
def test_what_is_not_finite_is_neither_written_nor_taken_for_whole(tmp_path, part, value):
    def content(step, number):
        learned = {"model": {}, "target": {}, "optimizer": {"state": {}}}
        place = learned[part]["state"] if part == "optimizer" else learned[part]
        place[0] = {"momentum_buffer": torch.tensor([0.0, number])}
        return {**learned, "progress": {"step": step, "last": {"final_loss": float("nan")}}}

    for step in (1, 2):
        save_checkpoint(tmp_path, step, content(step, 1.0), keep=2)
    for step in (3, 4, 5):  # the last good one is never pushed out
        with pytest.raises(StateNotFiniteError, match=f"{part}.*contains NaN or infinity"):
            save_checkpoint(tmp_path, step, content(step, value), keep=2)
    assert [step_of(path) for path in list_checkpoints(tmp_path)] == [2, 1]
    # Written by an older version.
    mark = {"format": "intl-transfer checkpoint", "schema": 1}
    torch.save({**mark, **content(6, value)}, tmp_path / "step_00000006.pt")
    with pytest.warns(UserWarning, match=r"skipped: .*step_00000006\.pt is incomplete: .*NaN"):
        path, _ = load_newest(tmp_path)
    assert step_of(path) == 2


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (pathlib.PurePosixPath("x"), r"PurePosixPath"),
        (torch.eye(3).to_sparse(), "torch.sparse_coo"),
        (torch.nn.Buffer(torch.ones(2)), "_is_buffer"),
        (torch.ones(2, device="meta"), "meta"),
        (torch.device("cpu"), r"torch\.device at 'model\.0'"),
    ],
)
def test_what_reading_would_refuse_is_not_written(tmp_path, value, found):
    save_checkpoint(tmp_path, 1, state(1))
    with pytest.raises(UserError, match=rf"step_00000002\.pt was not written: .*{found}"):
        save_checkpoint(tmp_path, 2, {"model": [value]}, keep=1)
    assert [step_of(path) for path in list_checkpoints(tmp_path)] == [1]


def test_what_is_written_is_read_back(tmp_path):
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.ones(3))])
    optimizer.param_groups[0]["params"][0].sum().backward()
    optimizer.step()
    whole = {
        "optimizer": optimizer.state_dict(),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "view": torch.arange(6.0).view(2, 3).t(),
        "other": [None, True, (1, 2.5), {3}, b"x", torch.float16, torch.Size([2])],
        "numbers": {0: np.float64(1), "a": np.ones(2), "ordered": OrderedDict(x=1)},
    }
    found = read_checkpoint(save_checkpoint(tmp_path, 1, whole))
    assert torch.equal(found["view"], whole["view"])
    assert found["other"] == whole["other"]
    save_checkpoint(tmp_path, 2, found)  # its marks are this project's


@pytest.mark.parametrize(("step", "keep"), [(-1, 2), (3, 0), (3, -1)])
def test_no_checkpoint_removes_itself(tmp_path, step, keep):
    with pytest.raises(ValueError, match=f"keep >= 1, found step={step} and keep={keep}"):
        save_checkpoint(tmp_path, step, state(1), keep=keep)


@pytest.mark.parametrize("key", ["format", "schema"])
def test_the_keys_of_the_project_are_its_own(tmp_path, key):
    with pytest.raises(UserError, match=f"key '{key}' is this project's own"):
        save_checkpoint(tmp_path, 1, {**state(1), key: 7})


def test_a_checkpoint_set_aside_is_kept_and_not_taken(tmp_path):
    for step in (1, 2):
        save_checkpoint(tmp_path, step, state(step))
    aside = set_aside(tmp_path, 2)
    assert aside.name == "unproven_step_00000002.pt"
    assert read_checkpoint(aside)["progress"]["step"] == 2
    assert step_of(load_newest(tmp_path)[0]) == 1
    assert set_aside(tmp_path, 2) is None
