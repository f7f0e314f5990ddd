"""What a file may hold beside tensors, what it may not, and how much memory it costs."""

from __future__ import annotations

import argparse
import collections
import datetime
import io
import json
import os
import pathlib
import pickle
import pickletools
import subprocess
import sys

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from intl_transfer.conversion import load_backbone, read_backbone
from intl_transfer.conversion.reading import read_content
from intl_transfer.errors import UserError
from intl_transfer.files.placeholders import plain
from intl_transfer.files.torch_files import read_pickled
from tests.conversion.layouts import behind, caffe2, detectron2, head, small_state
from tests.conversion.test_conversion import backbone_state

STATE = small_state(1)


class Evil:
    """A pickle of it makes a folder when it is loaded."""

    def __init__(self, folder, call=os.mkdir):
        self.folder, self.call = str(folder), call

    def __reduce__(self):
        return self.call, (self.folder,)


def test_what_published_files_hold_beside_tensors_is_read(tmp_path):
    values = {
        "state_dict": STATE,
        "args": argparse.Namespace(lr=0.3, data=pathlib.Path("/data"), arch="resnet50"),
        "best_acc1": np.float64(71.1),
        "accuracies": np.arange(3.0),
        "text": np.str_("x"),
        "history": collections.defaultdict(list, a=[1]),
        "queue": collections.deque([1, 2]),
        "counts": collections.Counter("aab"),
        "when": datetime.datetime(2020, 1, 1),
        "slices": [slice(1, 2), range(3), {1}, frozenset([2]), 1j, b"x"],
        "config": OmegaConf.create({"method": "byol", "to": "${method}", "list": [1, None]}),
    }
    torch.save(values, tmp_path / "in.pth")
    content = read_content(tmp_path / "in.pth")
    assert plain(content.values["args"])["lr"] == 0.3
    assert content.values["best_acc1"] == 71.1
    assert content.values["counts"]["a"] == 2
    assert torch.equal(load_backbone(tmp_path / "in.pth")["bn1.bias"], STATE["bn1.bias"])
    kept = plain(content.values["config"])
    assert plain(kept["method"]) == "byol"
    assert plain(kept["to"]) == "${method}"  # never resolved


def test_omegaconf_is_not_used_to_read_its_nodes(tmp_path, monkeypatch):
    """An interpolation could read the environment; it stays the text that it is, and no method."""
    monkeypatch.setenv("SECRET", "byol")
    values = {
        "pytorch-lightning_version": "2.0",
        "state_dict": {**behind("backbone.", STATE), **head("classifier.weight")},
        "hyper_parameters": {"cfg": OmegaConf.create({"method": "${oc.env:SECRET}"})},
    }
    torch.save(values, tmp_path / "in.pth")
    found = read_backbone(tmp_path / "in.pth")
    assert (found.source_format, found.method) == ("Lightning", None)
    values["hyper_parameters"]["cfg"].method = "byol"
    torch.save(values, tmp_path / "in.pth")
    assert read_backbone(tmp_path / "in.pth").method == "BYOL"


@pytest.mark.parametrize("old", [False, True], ids=["zip", "before torch 1.6"])
def test_torchs_two_forms(tmp_path, old):
    file = tmp_path / "in.pth"
    value = {"state_dict": STATE, "args": argparse.Namespace(lr=1)}
    torch.save(value, file, _use_new_zipfile_serialization=not old)
    assert (file.read_bytes()[:2] == b"PK") == (not old)
    assert torch.equal(load_backbone(file)["layer4.1.bn2.bias"], STATE["layer4.1.bn2.bias"])
    value["args"] = Evil(tmp_path / "ran")
    torch.save(value, file, _use_new_zipfile_serialization=not old)
    with pytest.warns(UserWarning, match=r"imports posix\.mkdir.* No code in it was executed"):
        assert torch.equal(load_backbone(file)["bn1.bias"], STATE["bn1.bias"])
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("call", [os.mkdir, os.system, eval, exec, __import__, open, getattr])
@pytest.mark.parametrize("form", ["torch", 0, 2, 4, 5])
@pytest.mark.filterwarnings("ignore:.*No code in it was executed")
def test_nothing_in_a_file_is_ever_called(tmp_path, monkeypatch, call, form):
    """The tensors beside it are read; of the call only its name and its arguments are kept."""
    file, ran = tmp_path / "in.pkl", tmp_path / "ran"
    monkeypatch.chdir(tmp_path)
    text = {os.system: "mkdir ran", eval: "__import__('os').mkdir('ran')"}.get(call, str(ran))
    state = {key: value.numpy() for key, value in detectron2(STATE).items()}
    value = {"model": detectron2(STATE) if form == "torch" else state, "x": Evil(text, call)}
    if form == "torch":
        torch.save(value, file)
    else:
        file.write_bytes(pickle.dumps(value, protocol=form))
    content = read_content(file)
    stored = content.values["x"]
    assert stored.name.endswith(f".{call.__name__}")
    assert stored.arguments == (text,)
    assert not callable(stored)
    assert torch.equal(load_backbone(file)["bn1.bias"], STATE["bn1.bias"])
    assert not ran.exists()


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        (b"cnumpy\nload\n(S'x'\ntR.", r"found a numpy\.load"),
        (b"cnumpy\ndtype\n(S'O'\ntR.", r"found a numpy\.dtype"),
        (b"c_codecs\nencode\n(Vx\nVzip\ntR.", r"a text in the encoding \['zip'\]"),
        (b"cbuiltins\ngetattr\n.", r"found a builtins\.getattr"),
        (b"\x80\x02P12345678\n.", r"an object outside the file"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", r"found a os\.system"),
        (b"(S'x'\nios\nsystem\n.", r"found a os\.system"),
        (b"}(dS'a'\nI1\nsb.", r"a state for 'dict'"),
        (b"cnumpy\ndtype\nN(dS'__defaults__'\nI1\ns\x86b.", r"found a numpy\.dtype"),
        (b"I1\n)R.", r"a call of 'int' with 'tuple'"),
        (b"\x80\x02\x82\x01.", r"an unknown instruction"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*No code in it was executed")
def test_programs_that_no_writer_makes(tmp_path, program, reason):
    file = tmp_path / "in.pkl"
    # Two instructions that do nothing, so that the file has a length.
    file.write_bytes(b"\x80\x02" + b"N0" * 8 + program)
    with pytest.raises(UserError, match=reason):
        load_backbone(file)


@pytest.mark.parametrize("protocol", range(6))
def test_detectron2s_pickles_in_every_protocol(tmp_path, protocol):
    model = {key: value.contiguous().numpy() for key, value in detectron2(STATE).items()}
    # Published converters leave torch's counters in, and name the classifier like this.
    model["stem.conv1.norm.num_batches_tracked"] = torch.tensor(7).numpy()
    model["stem.fc.weight"] = torch.zeros(3, 3).numpy()
    value = {"model": model, "__author__": "torchvision", "matching_heuristics": True}
    file = tmp_path / "in.pkl"
    file.write_bytes(pickle.dumps(value, protocol=protocol))
    found = read_backbone(file)
    assert found.source_format == "Detectron2"
    assert found.dropped == ["stem.fc.weight"]
    assert found.state["bn1.num_batches_tracked"] == 7
    assert found.settings.source == "the file's author, torchvision"
    assert torch.equal(found.state["layer4.1.bn2.bias"], STATE["layer4.1.bn2.bias"])
    half = read_pickled(file).value
    assert half["model"]["stem.conv1.weight"].dtype == np.float32


def test_pickles_of_python_2(tmp_path):
    """As Detectron wrote them: numpy 1's names, strings of bytes."""
    blobs = {"blobs": {**caffe2(STATE), "conv1_w_momentum": np.zeros(3, np.float32)}}
    data = pickle.dumps(blobs, protocol=2)
    data = data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    buffer = io.BytesIO()
    for opcode, argument, _ in pickletools.genops(data):
        assert opcode.name != "FRAME", argument
    buffer.write(data)
    (tmp_path / "in.pkl").write_bytes(buffer.getvalue())
    found = read_backbone(tmp_path / "in.pkl")
    assert torch.equal(found.state["conv1.weight"], STATE["conv1.weight"])
    assert "conv1_w_momentum" in found.dropped


def test_a_circle_in_a_file_ends(tmp_path):
    values: dict = {"state_dict": dict(STATE)}
    values["self"] = values
    (tmp_path / "in.pkl").write_bytes(pickle.dumps({"x": 1}, protocol=2))
    torch.save(values, tmp_path / "in.pth")
    with pytest.raises(UserError, match="a container in it holds itself"):
        read_backbone(tmp_path / "in.pth")


MEASURE = """
import json, resource, sys
import torch
from intl_transfer.conversion import convert
torch.set_num_threads(1)
convert(sys.argv[1], sys.argv[2])
print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))
"""


def peak(source, out) -> float:
    """Peak memory of a conversion in a process of its own, in MiB."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(source), str(out)],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    return float(json.loads(done.stdout.splitlines()[-1]))


def test_what_is_not_of_the_backbone_costs_no_memory(tmp_path):
    """An optimizer's state, a queue, a second network: 300 MB that are never read."""
    bare, laden = tmp_path / "bare.pth", tmp_path / "laden.pth"
    state = backbone_state()
    torch.save({"state_dict": state}, bare)
    ballast = {i: {"momentum_buffer": torch.full((5_000_000,), float(i))} for i in range(12)}
    queue = {"module.queue": torch.ones(128, 117_000)}
    laden_state = {**behind("module.", state), **queue}
    torch.save({"state_dict": laden_state, "optimizer": {"state": ballast}}, laden)
    assert laden.stat().st_size > 290e6
    more = peak(laden, tmp_path / "a.pth") - peak(bare, tmp_path / "b.pth")
    assert more < 30  # MiB, a tenth of it
