"""What is passed on tells of no machine and no person, unless it is asked to."""

from __future__ import annotations

import json
import re
import socket

import pytest
import safetensors
import torch

from intl_transfer.cli import main
from intl_transfer.conversion import convert
from intl_transfer.runs import write_json
from intl_transfer.runs.private import Privacy, portable, portable_path
from tests.conversion.test_conversion import backbone_state
from tests.results.synthetic import detection_run, evaluation_run, pretraining_run


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/home/alice/runs/intl/backbone.safetensors", "intl/backbone.safetensors"),
        ("/home/alice/moco_v2.pth.tar", "moco_v2.pth.tar"),
        ("/home/checkpoint.pth", "checkpoint.pth"),
        ("C:\\Users\\alice\\x.pth", "x.pth"),
        ("x.pth", "x.pth"),
    ],
)
def test_files_by_their_names(path, expected):
    assert portable_path(path) == expected


def test_settings_by_their_files_names():
    found = portable({"a": "/home/alice/list.txt", "b": 1, "c": "a/b", "d": None})
    assert found == {"a": "list.txt", "b": 1, "c": "a/b", "d": None}


def test_texts_without_paths_hosts_and_users():
    manifest = {"hardware": {"host": "node17.cluster"}, "config": {"root": "/home/alice/data"}}
    privacy = Privacy(["/scratch/lab/runs"], [manifest])
    cases = {
        "/scratch/lab/runs/a/seed0": "a/seed0",
        "read /opt/sets/coco/annotations.json, then": "read annotations.json, then",
        "on node17.cluster and node17": "on HOST and HOST",
        "by alice (alicein)": "by USER (alicein)",
        "C:\\Users\\bob\\x.txt": "x.txt",
        "~/secret/x": "x",
        "AP/AP50, 1/2, 3x3/4": "AP/AP50, 1/2, 3x3/4",
        r"\hline\hline \textbf{a}\\\midrule\toprule": r"\hline\hline \textbf{a}\\\midrule\toprule",
        json.dumps({"a": "b\nc\nd"}): json.dumps({"a": "b\nc\nd"}),
        "https://github.com/lab/code": "https://github.com/lab/code",
    }
    assert {text: privacy.text(text) for text in cases} == cases


def test_anonymous_leaves_out_what_leads_to_a_group():
    privacy = Privacy([], [], anonymous=True)
    text = f"see https://github.com/lab/code, mail a.b@lab.edu, at {'a1' * 20}"
    assert privacy.text(text) == "see ADDRESS mail E-MAIL, at REVISION"
    assert privacy.value({"started": "2024-01-01", "n": 3}) == {"started": "", "n": 3}


@pytest.fixture
def runs(tmp_path):
    """Runs of somebody on some machine, as their manifests tell."""
    folder = tmp_path / "secret-group" / "runs"
    made = [
        detection_run(folder, "detection"),
        pretraining_run(folder, "pretrain"),
        evaluation_run(folder, "evaluation"),
    ]
    for run in made:
        path = getattr(run, "path", run)
        manifest = json.loads((path / "manifest.json").read_text())
        manifest["hardware"]["host"] = "gpu42.lab.edu"
        manifest["sessions"][0] |= {
            "host": "gpu42.lab.edu",
            "command": ["/home/alice/env/bin/python", "train.py", "--token", "hf_123"],
        }
        manifest["config"]["data_root"] = "/home/alice/imagenet/train"
        manifest["git"] = {"revision": "ab" * 20, "dirty": False}
        write_json(path / "manifest.json", manifest)
    return folder


def passed_on(folder, *options) -> str:
    assert main(["collect", str(folder), "--no-cache", "--out", f"{folder}-out/", *options]) == 0
    files = folder.with_name("runs-out").rglob("*")
    return "\n".join(file.read_text(errors="replace") for file in files if file.is_file())


def test_tables_and_report(runs, capsys):
    text = passed_on(runs)
    for word in ("alice", "gpu42", "hf_123", "secret-group", str(runs), socket.gethostname()):
        assert not re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text), word
    assert "ab" * 20 in text
    assert "detection" in text
    anonymous = passed_on(runs, "--anonymous")
    assert "ab" * 20 not in anonymous
    assert "30.0" in anonymous
    everything = passed_on(runs, "--disclose")
    for word in ("alice", "gpu42", "hf_123", str(runs)):
        assert word in everything
    assert main(["collect", str(runs), "--disclose", "--anonymous"]) == 2


@pytest.mark.parametrize("name", ["out.pth", "out.safetensors"])
def test_converted_weights(tmp_path, name):
    source = tmp_path / "alice-home" / "in.pth"
    source.parent.mkdir()
    torch.save({"state_dict": backbone_state()}, source)
    report = convert(source, tmp_path / name)
    assert report["provenance"]["source_path"] == "in.pth"
    written = [(tmp_path / name).read_bytes(), (tmp_path / "out.json").read_bytes()]
    if name.endswith("safetensors"):
        with safetensors.safe_open(tmp_path / name, "pt") as opened:
            written.append(str(opened.metadata()).encode())
    for data in written:
        assert b"alice" not in data
        assert str(tmp_path).encode() not in data
