"""Files that are damaged, external or malicious: one clear line each, and nothing written."""

from __future__ import annotations

import enum
import functools
import io
import json
import pickle
import resource
import string
import zipfile

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from intl_transfer.cli import main
from intl_transfer.conversion import (
    convert,
    from_detectron2,
    load_backbone,
    read_backbone,
    to_detectron2,
)
from intl_transfer.conversion.reading import read_content
from intl_transfer.errors import UserError
from intl_transfer.runs.checkpoint import FORMAT, save_checkpoint
from tests.conversion.test_conversion import backbone_state, checkpoint, same, start_run


def saved(path, value):
    torch.save(value, path)
    return path


@pytest.mark.parametrize(
    "content", ["version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "<!DOCTYPE html>"]
)
def test_text_in_place_of_weights_is_shown(tmp_path, content):
    file = tmp_path / "in.pth"
    file.write_text(content)
    with pytest.raises(UserError) as caught:
        load_backbone(file)
    assert f"it begins with {content[:9].encode()!r}" in str(caught.value)
    assert "weights_only" not in str(caught.value)  # no hint at how to switch protection off


class Sizes(enum.Enum):
    SMALL = 1


def test_what_is_not_known_stays_where_it_is(tmp_path):
    """Files that no list of harmless classes would ever hold all of."""
    state = backbone_state()
    value = {
        "state_dict": state,
        "args": string.Template("x"),
        "hyper_parameters": {"size": Sizes.SMALL, "sort": functools.partial(sorted, key=len)},
        "activation": torch.nn.functional.relu,
        "loss": torch.nn.CrossEntropyLoss(),
    }
    same(load_backbone(saved(tmp_path / "in.pth", value)), state)
    (tmp_path / "in.pkl").write_bytes(pickle.dumps({"model": to_detectron2(state)}, protocol=4))
    same(load_backbone(tmp_path / "in.pkl"), state)


class OfAnotherProject(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = torchvision.models.resnet18()
        self.register_buffer("kept", torch.ones(2))
        self.register_buffer("passing", torch.ones(2), persistent=False)


@pytest.mark.parametrize("wrapped", [False, True])
def test_networks_that_were_pickled_whole(tmp_path, wrapped):
    """By a class that is not here when it is read."""
    torch.manual_seed(0)
    network = torch.nn.DataParallel(OfAnotherProject())
    file = saved(tmp_path / "in.pth", {"model": network} if wrapped else network)
    named = OfAnotherProject.__module__.encode()
    with zipfile.ZipFile(io.BytesIO(file.read_bytes())) as archive:
        assert named in archive.read("in/data.pkl")
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w") as archive:  # with checksums that are right
        for name, data in records.items():
            archive.writestr(name, data.replace(named, b"x" * len(named)))
    content = read_content(file)
    found = content.values["model"] if wrapped else content.values
    assert list(found) == list(network.state_dict())
    same(found, network.state_dict())


@pytest.mark.filterwarnings("ignore:.*torch.jit.* is deprecated")
def test_programs_of_torchscript_are_named(tmp_path):
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3), torch.nn.BatchNorm2d(2))
    torch.jit.script(network).save(str(tmp_path / "in.pt"))
    with pytest.raises(UserError, match="TorchScript"):
        read_content(tmp_path / "in.pt")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({0: torch.zeros(1)}, r"no known format \(its first keys: 0\)"),
        ({}, r"first keys: none"),
        ({"fc.weight": torch.zeros(3, 3)}, r"first keys: fc\.weight"),
        ({"optimizer": {"state": {}}}, r"first keys: optimizer"),
        ({"format": FORMAT, "schema": 1}, r"not a complete checkpoint: .* 'model'"),
        ({"format": FORMAT, "schema": 1, "model": {"a": torch.zeros(1)}}, r"begins with 'backb"),
        ({"format": FORMAT, "schema": 99}, r"schema 99"),
    ],
)
def test_dictionaries_without_a_backbone(tmp_path, value, message):
    with pytest.raises(UserError, match=message):
        load_backbone(saved(tmp_path / "in.pth", value))


@pytest.mark.parametrize("key", ["conv1.weight", "layer1.0.conv1.weight"])
def test_a_number_in_place_of_a_kernel(tmp_path, key):
    file = saved(tmp_path / "in.pth", {**backbone_state(), key: torch.tensor(1.0)})
    with pytest.raises(UserError, match=rf"{key}: expected shape \(64, .* found \(\)"):
        convert(file, tmp_path / "out.pth")


def test_a_misspelt_branch(tmp_path):
    with pytest.raises(UserError, match="Did you mean 'target'"):
        read_backbone(tmp_path, "targte")  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def small_file(tmp_path_factory):
    """A checkpoint whose pickle is most of it, so that a random place is often in the pickle."""
    value = {"state_dict": {f"layer1.{i}.conv1.weight": torch.zeros(1) for i in range(8)}}
    return saved(tmp_path_factory.mktemp("small") / "in.pth", value).read_bytes()


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_damage_anywhere_is_a_clear_error(tmp_path, small_file, data):
    """The file holds no ResNet, so whatever survives the damage has to be refused as well."""
    damaged = bytearray(small_file)
    for _ in range(data.draw(st.integers(1, 4), label="places")):
        place = data.draw(st.integers(0, len(damaged) - 1), label="place")
        damaged[place] = data.draw(st.integers(0, 255), label="value")
    keep = data.draw(st.integers(0, len(damaged)), label="keep") if data.draw(st.booleans()) else -1
    path = tmp_path / "in.pth"
    path.write_bytes(bytes(damaged[:keep] if keep >= 0 else damaged))
    with pytest.raises(UserError, match=r"in\.pth"):
        load_backbone(path)


@pytest.fixture(scope="module")
def small_pickle():
    model = {f"res2.{i}.conv1.weight": np.zeros(1, np.float32) for i in range(4)}
    return pickle.dumps({"model": model, "__author__": "x"}, protocol=2)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_damage_anywhere_in_a_plain_pickle_is_a_clear_error(tmp_path, small_pickle, data):
    damaged = bytearray(small_pickle)
    for _ in range(data.draw(st.integers(1, 4), label="places")):
        place = data.draw(st.integers(0, len(damaged) - 1), label="place")
        damaged[place] = data.draw(st.integers(0, 255), label="value")
    path = tmp_path / "in.pkl"
    path.write_bytes(bytes(damaged))
    with pytest.raises(UserError, match=r"in\.pkl"):
        load_backbone(path)


@pytest.mark.parametrize(
    ("part", "forged"),
    [
        # Flags of a type that say its numbers are references; its size; fields.
        (b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00t", b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x1bt"),
        (b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00t", b"J\xff\xff\xff\x7fJ\xff\xff\xff\xffK\x00t"),
        (b"NNNJ", b"NN}J"),
        # More numbers than bytes.
        (b"(K\x01K\x01\x85", b"(K\x01K\x09\x85"),
        # Seventeen gigabytes that the file has not.
        (b"}q\x00(X\x05\x00\x00\x00model", b"\x96\x00\x00\x00\x00\x04\x00\x00\x00l"),
    ],
)
def test_what_a_pickle_says_of_memory_is_not_believed(tmp_path, small_pickle, part, forged):
    """numpy would read and free memory that is not the array's; Python would fill all there is."""
    assert part in small_pickle
    path = tmp_path / "in.pkl"
    path.write_bytes(small_pickle.replace(part, forged, 1))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=r"in\.pkl"):
        load_backbone(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # KiB
    if b"J" in part:
        # torch's older form and its reader, which gives objects their state too.
        buffer = io.BytesIO()
        value = {"epoch": np.int64(1), "curve": np.zeros(1, np.float32)}
        torch.save(value, buffer, _use_new_zipfile_serialization=False)
        assert part in buffer.getvalue()
        path = tmp_path / "in.pth"
        path.write_bytes(buffer.getvalue().replace(part, forged))
        with pytest.raises(UserError, match=r"in\.pth is damaged"):
            load_backbone(path)


def test_two_resnets_in_one_file_are_never_mixed():
    state = to_detectron2(backbone_state())
    both = {**state, **{f"backbone.{key}": value for key, value in state.items()}}
    with pytest.raises(UserError, match=r"'backbone\.stem\.conv1\.weight' are the same tensor"):
        from_detectron2(both)


def test_detectron2_backbones_with_more_than_a_resnet_are_refused(tmp_path):
    state = {**to_detectron2(backbone_state()), "res4.0.conv2_offset.weight": torch.zeros(2)}
    with pytest.raises(UserError, match=r"in\.pth: 'res4\.0\.conv2_offset\.weight' has no place"):
        load_backbone(saved(tmp_path / "in.pth", {"model": state}))


def test_a_detectors_backbone_comes_back(tmp_path):
    """Names as a C4 detector has them: res5 in the box head, counters, and other parts."""
    state = backbone_state()
    names = to_detectron2(state)
    detector = {
        ("roi_heads." if key.startswith("res5") else "backbone.") + key: value
        for key, value in names.items()
    }
    others = ["roi_heads.res5.norm.weight", "proposal_generator.rpn_head.conv.weight"]
    detector.update(dict.fromkeys(others, torch.zeros(3)))
    detector["backbone.stem.conv1.norm.num_batches_tracked"] = torch.tensor(7)
    found = read_backbone(saved(tmp_path / "in.pth", {"model": detector, "iteration": 90_000}))
    same(found.state, state)
    assert found.state["bn1.num_batches_tracked"] == 7
    assert sorted(found.dropped) == sorted(others)


def test_a_replaced_backbone_of_a_finished_run_is_noticed(tmp_path):
    run = start_run(tmp_path / "run")
    file = run.path / "backbone.safetensors"
    save_file(backbone_state(), file)
    run.finish({"backbone_sha256": read_backbone(file).source_sha256})
    same(load_backbone(run.path), backbone_state())
    data = bytearray(file.read_bytes())
    data[-1] ^= 1  # still a readable file of finite numbers
    file.write_bytes(bytes(data))
    with pytest.raises(UserError, match=r"damaged or not this run's.*results\.json says"):
        load_backbone(run.path)


@pytest.mark.parametrize("origin", [{"method": torch.zeros(2)}, {"pretrain_run": {1j: 1}}, 3])
def test_unreadable_provenance_is_left_out_and_said(tmp_path, origin):
    value = {"model": to_detectron2(backbone_state()), "provenance": origin}
    file = saved(tmp_path / "in.pth", value)
    if isinstance(origin, dict):
        with pytest.warns(UserWarning, match="its pretraining metadata"):
            found = read_backbone(file)
    else:
        found = read_backbone(file)
    assert (found.method, found.pretrain_run) == (None, None)


def test_the_report_of_another_file_is_not_replaced(tmp_path):
    file = saved(tmp_path / "in.pth", backbone_state())
    (tmp_path / "out.json").write_text("mine")
    with pytest.raises(UserError, match=r"out\.json exists already"):
        convert(file, tmp_path / "out.pth")
    assert (tmp_path / "out.json").read_text() == "mine"
    assert not (tmp_path / "out.pth").exists()


def test_the_source_is_never_replaced(tmp_path):
    file = saved(tmp_path / "in.pth", backbone_state())
    before = file.read_bytes()
    with pytest.raises(UserError, match="is the source itself"):
        convert(file, tmp_path / "in.pth", force=True)
    assert file.read_bytes() == before


def sharded_folder(folder):
    """As `save_pretrained` splits a network, with configurations beside it."""
    folder.mkdir()
    parts = {name: {} for name in ("a.safetensors", "b.safetensors")}
    for index, (key, value) in enumerate(backbone_state().items()):
        parts[("a.safetensors", "b.safetensors")[index % 2]][key] = value
    for name, part in parts.items():
        save_file(part, folder / name)
    owners = {key: name for name, part in parts.items() for key in part}
    index = {"metadata": {}, "weight_map": owners}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def detectors_folder(folder):
    """As Detectron2 trains a detector elsewhere: `model_final.pth` beside `config.yaml`."""
    folder.mkdir()
    state = {f"backbone.{k}": v for k, v in to_detectron2(backbone_state()).items()}
    torch.save({"model": state}, folder / "model_final.pth")
    (folder / "config.yaml").write_text(
        "INPUT: {FORMAT: RGB}\nMODEL:\n  PIXEL_MEAN: [1, 2, 3]\n  PIXEL_STD: [1, 1, 1]\n"
        "  RESNETS: {STRIDE_IN_1X1: false}\n"
    )
    return folder / "model_final.pth"


def timms_folder(folder):
    folder.mkdir()
    save_file(backbone_state(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"architecture": "resnet18"}))
    return folder


@pytest.mark.parametrize(
    ("make", "out"),
    [
        (timms_folder, "model.safetensors"),
        (timms_folder, "config.pth"),  # whose report is config.json
        (sharded_folder, "b.safetensors"),
        (sharded_folder, "model.safetensors.index.pth"),
        (detectors_folder, "config.pth"),  # whose settings are config.yaml
    ],
)
def test_no_file_that_is_read_is_replaced(tmp_path, make, out):
    source = make(tmp_path / "in")
    before = {file.name: file.read_bytes() for file in (tmp_path / "in").iterdir()}
    with pytest.raises(UserError, match=r"is (the source itself|read for the source); give"):
        convert(source, tmp_path / "in" / out, force=True)
    assert {file.name: file.read_bytes() for file in (tmp_path / "in").iterdir()} == before


@pytest.mark.parametrize("stage", ["pretrain", "detection"])
@pytest.mark.parametrize(
    "out", ["backbone.safetensors", "model_final.pth", "results.safetensors", "checkpoints/x.pth"]
)
def test_nothing_is_written_among_a_runs_files(tmp_path, stage, out):
    run = start_run(tmp_path / "run", stage=stage)
    save_file(backbone_state(), run.path / "backbone.safetensors")
    state = {f"backbone.{k}": v for k, v in to_detectron2(backbone_state()).items()}
    torch.save({"model": state}, run.path / "model_final.pth")
    (run.path / "checkpoints").mkdir(exist_ok=True)
    (run.path / "results.json").write_text("{}")
    before = {file: file.read_bytes() for file in run.path.rglob("*") if file.is_file()}
    for source in (run.path, run.path / "backbone.safetensors"):
        with pytest.raises(UserError, match=r"is in the directory of a run|the source itself"):
            convert(source, run.path / out, force=True)
    assert {file: file.read_bytes() for file in run.path.rglob("*") if file.is_file()} == before


def test_places_that_cannot_be_written(tmp_path):
    file = saved(tmp_path / "in.pth", backbone_state())
    (tmp_path / "folder.pth").mkdir()
    with pytest.raises(UserError, match="is a folder"):
        convert(file, tmp_path / "folder.pth", force=True)
    with pytest.raises(UserError, match=r"in\.pth cannot be made: File exists"):
        convert(file, file / "out.pth")


def test_views_do_not_take_their_storage_along(tmp_path):
    """Tensors cut out of one large buffer: only they are written, not the buffer."""
    state = backbone_state()
    buffer = torch.zeros(40_000_000)
    buffer[: state["conv1.weight"].numel()] = state["conv1.weight"].flatten()
    state["conv1.weight"] = buffer[: state["conv1.weight"].numel()].view(64, 3, 7, 7)
    file = saved(tmp_path / "in.pth", state)
    assert file.stat().st_size > 200e6
    convert(file, tmp_path / "out.pth")
    assert (tmp_path / "out.pth").stat().st_size < 50e6


def test_the_command_names_a_damaged_checkpoint_and_goes_on(tmp_path, capsys):
    run = start_run(tmp_path / "run")
    save_checkpoint(run.path / "checkpoints", 1, checkpoint(1))
    newest = save_checkpoint(run.path / "checkpoints", 2, checkpoint(2))
    newest.write_bytes(newest.read_bytes()[:-100])
    out = tmp_path / "out.pth"
    assert main(["convert", str(run.path), str(out), "--branch", "target"]) == 0
    printed = capsys.readouterr()
    assert printed.err.startswith("note      skipped: ")
    assert "step_00000002.pt is damaged" in printed.err
    provenance = json.loads(out.with_suffix(".json").read_text())["provenance"]
    assert provenance["source_path"].endswith("step_00000001.pt")
    assert provenance["branch"] == "target"
    same(load_backbone(out), backbone_state(seed=101))
