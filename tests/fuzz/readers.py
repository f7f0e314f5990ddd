"""The readers that are tried, each with the files it is given and how it is called."""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import json
import pickle
import random
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.font_manager  # noqa: F401  (its first import lists the fonts and keeps them)
import numpy as np
import torch
import yaml
from safetensors.torch import save as safetensors_bytes

from detection.config import load_config as load_detection
from intl_transfer.conversion import load_backbone
from intl_transfer.conversion.reading import read_content
from intl_transfer.data.cifar import CifarSource
from intl_transfer.data.shards import TarSource
from intl_transfer.data.source import ImageSource
from intl_transfer.data.sources import select
from intl_transfer.errors import UserError
from intl_transfer.files.rcc import RccFile
from intl_transfer.results import TableOptions, build_tables, collect
from intl_transfer.results.outputs import write_folder
from intl_transfer.runs.checkpoint import FORMAT, read_checkpoint
from intl_transfer.runs.config import load_config
from intl_transfer.runs.finite import first_nonfinite
from pretrain.config import PretrainConfig
from slurm.benchmark import read as read_benchmark
from slurm.ledger import Ledger
from slurm.resources import profile
from tests.conversion.layouts import small_state
from tests.data.test_rcc import compose
from tests.fuzz import mutations
from tests.results.synthetic import detection_run, evaluation_run, external_run, pretraining_run

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Reader:
    """What is tried.

    Attributes:
        name: for the counts.
        attempt: writes one input below a folder, by a random source, and reads it.
    """

    name: str
    attempt: Callable[[random.Random, Path], None]


def _torch_bytes(value: Any, new: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=new)
    return buffer.getvalue()


@functools.cache
def _checkpoints() -> list[bytes]:
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(3).half()}
    value = {"state_dict": tensors, "epoch": 3, "l": [1, (2, "x")], "n": np.arange(3.0)}
    own = {"format": FORMAT, "schema": 1, "model": tensors, "run": {"method": "INTL"}}
    arrays = {"model": {"a": np.ones((2, 2), np.float32)}, "__author__": "x", "s": {1, 2}}
    found = [_torch_bytes(value, new) for value in (value, own) for new in (True, False)]
    found += [pickle.dumps(arrays, protocol) for protocol in range(6)]
    found += [pickle.dumps(value), safetensors_bytes(tensors, {"config": '{"a": 1}'})]
    found.append(_torch_bytes({"state_dict": small_state(1)}, True))
    return found


def _pickles(rng: random.Random, folder: Path) -> None:
    kind, base = rng.random(), rng.choice(_checkpoints())
    if kind < 0.35:
        data = mutations.program(rng)
    elif kind < 0.55:
        data = mutations.forged(rng, lambda: rng.choice(_checkpoints()[4:10]))
    else:
        data = mutations.damaged(base, rng)
    file = folder / "in.pth"
    file.write_bytes(data)
    content = read_content(file, mmap=rng.random() < 0.5, verified=rng.random() < 0.3)
    first_nonfinite(content.values)
    with contextlib.suppress(UserError):  # most hold no ResNet
        load_backbone(file)


def _own(rng: random.Random, folder: Path) -> None:
    file = folder / "step_00000001.pt"
    file.write_bytes(mutations.damaged(_checkpoints()[2], rng))
    read_checkpoint(file)


def _cifar(rng: random.Random, folder: Path) -> None:
    inner = folder / "cifar-100-python"
    inner.mkdir()
    train = {"data": np.zeros((3, 3072), np.uint8), "fine_labels": [0, 1, 0]}
    meta = {"fine_label_names": ["a", "b"]}
    files = {"train": train, "meta": meta}
    forged = rng.choice(list(files))
    for name, content in files.items():
        data = pickle.dumps(content, 2)
        if name == forged:
            data = rng.choice(
                [
                    mutations.damaged,
                    lambda d, r: mutations.program(r),
                    lambda d, r: mutations.forged(r, lambda: d),
                ]
            )(data, rng)
        (inner / name).write_bytes(data)
    CifarSource(folder)


@functools.cache
def _configurations() -> list[dict[str, Any]]:
    names = ["pretrain/shapes_r18", "pretrain/imagenet_r50_ep100_multicrop_ema"]
    names += ["detection/Base-C4", "detection/shapes_coco_R18_C4", "slurm/example"]
    names += ["benchmark/shapes_smoke", "slurm/preemptible"]
    return [yaml.safe_load((ROOT / "configs" / f"{name}.yaml").read_text()) for name in names]


def _yaml(rng: random.Random, folder: Path) -> None:
    tree = copy.deepcopy(rng.choice(_configurations()))
    if rng.random() < 0.6:
        tree = mutations.changed(tree, rng)
    if isinstance(tree, dict) and rng.random() < 0.2:
        tree[rng.choice(["base", "_BASE_"])] = rng.choice(
            ["my.yaml", "http://localhost:1/a", "shapes_r18", "x", ["my.yaml"], "/dev/zero", 1]
        )
    try:
        text = yaml.safe_dump(tree, allow_unicode=rng.random() < 0.5).encode(errors="replace")
    except (yaml.YAMLError, RecursionError):
        text = b"a: 1"
    if rng.random() < 0.5:
        text = mutations.damaged(text, rng)
    file = folder / "my.yaml"
    file.write_bytes(text)
    read = rng.choice(
        [
            lambda: load_config(PretrainConfig, "my", [], folder),
            lambda: load_detection(str(file)),
            lambda: profile(str(file)),
            lambda: read_benchmark(str(file), []),
        ]
    )
    read()


def _overrides(rng: random.Random, folder: Path) -> None:
    keys = ["optim.batch_size", "data.root", "views", "views[0].size", "loss.options.a", "seed"]
    keys += ["", ".", "a", "optim", "views.0", "[", "optim..x", "output_dir"]
    value = rng.choice([*mutations.TEXTS, "[", "{", "{a: 1}", "[1,2]", "*a", "&a [*a]", "[" * 900])
    override = f"{rng.choice(keys)}{rng.choice(['=', '=', '=', ''])}{value}"
    if rng.random() < 0.3:
        override = mutations.damaged(override.encode(errors="replace"), rng).decode("latin1")
    if rng.random() < 0.6:
        load_config(PretrainConfig, "shapes_r18", [override], ROOT / "configs" / "pretrain")
    else:
        names = ["SOLVER.BASE_LR", "SOLVER.STEPS", "MODEL.PIXEL_MEAN", "X", "", "MODEL", "SEED"]
        load_detection("shapes_coco_R18_C4", [rng.choice(names), override.partition("=")[2]])


@functools.cache
def _runs() -> list[dict[str, bytes]]:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        detection_run(root, "a good one", method="MoCo v2", seed=7, sha="b" * 64)
        detection_run(root, "detection")
        pretraining_run(root, "pretrain", curves=20)
        evaluation_run(root, "evaluation")
        external_run(root, "external")
        return [
            {file.name: file.read_bytes() for file in run.iterdir() if file.is_file()}
            for run in sorted(root.iterdir())
        ]


def _results(rng: random.Random, folder: Path) -> None:
    """A good run beside a bad one: the table and the report have to hold the good one."""
    runs = _runs()
    for name, files in (("good", runs[0]), ("bad", dict(rng.choice(runs[1:])))):
        target = folder / "runs" / name
        target.mkdir(parents=True)
        if name == "bad":
            file = rng.choice(list(files))
            data = files[file]
            with contextlib.suppress(ValueError):
                if rng.random() < 0.6:
                    tree = mutations.changed(json.loads(data), rng)
                    data = json.dumps(tree).encode()
            if data == files[file]:
                data = mutations.damaged(data, rng)
            files = {**files, file: data}
        for file, data in files.items():
            (target / file).write_bytes(data)
    found = collect([folder / "runs"], {}, False)
    if not any(run.path.name == "good" for run in found.runs):
        raise AssertionError("the good run is not in the collection")
    tables = build_tables(found, False, TableOptions())
    write_folder(found, tables, folder / "report", {})


def _shards(rng: random.Random, folder: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=rng.choice([0, 1, 2])) as archive:
        for name in ("a/1.jpg", "1.cls", "²/" + "x" * 90 + ".jpg", rng.choice(["b.txt", "9.png"])):
            member = tarfile.TarInfo(name)
            member.size = 700
            archive.addfile(member, io.BytesIO(bytes(700)))
    data = mutations.damaged(buffer.getvalue()[:6000], rng)
    (folder / "a.tar").write_bytes(data)
    source = TarSource(folder)
    source.content(0)


class _Named(ImageSource):
    """A source of two classes, for lists."""

    def __init__(self) -> None:
        self.classes, self.labels = ["a", "²"], np.array([0, 1])

    def name(self, index: int) -> str:
        return f"{self.classes[index]}/{index}.jpg"

    def image(self, index: int) -> np.ndarray:
        return np.zeros((8, 8, 3), np.uint8)

    def content(self, index: int) -> bytes:
        return b""


def _lists(rng: random.Random, folder: Path) -> None:
    data = rng.choice(["a\n²\n", "0.jpg\n1.jpg", "# x\n\n1", "a/0.jpg\r\n"])
    encoding = rng.choice(["utf-8", "utf-8-sig", "utf-16", "latin1"])
    file = folder / "list.txt"
    file.write_bytes(mutations.damaged(data.encode(encoding), rng))
    select(_Named(), file)


def _ledger(rng: random.Random, folder: Path) -> None:
    job = {"stage": "convert", "target": "x", "command": ["a"], "resources": {}}
    schema, key = rng.choice([(1, "nodes"), (2, "jobs")])
    tree = {
        "schema": schema,
        "cluster": "slurm",
        "submitting": None,
        "launcher": {"pid": 1, "host": "h"},
        key: {"a": job},
    }
    data = json.dumps(mutations.changed(tree, rng)).encode()
    (folder / "jobs.json").write_bytes(mutations.damaged(data, rng) if rng.random() < 0.5 else data)
    Ledger.read(folder)


def _resources(rng: random.Random, folder: Path) -> None:
    names = ["/a/b.txt", "/a/c/d.webp", "/e", "/\u00e9/\U0001f600"]
    files = {name: bytes(rng.choice([0, 9, 300])) for name in names}
    whole = compose(files, rng.choice([1, 2, 3]), frozenset(names[::2]))
    file = folder / "a.rcc"
    file.write_bytes(mutations.damaged(whole, rng))
    found = RccFile(file)
    for name in found.names():
        with contextlib.suppress(UserError):
            found.read(name)


def prepare() -> None:
    """Makes the files that inputs are made of."""
    _checkpoints(), _configurations(), _runs()


READERS = (
    Reader("weights and checkpoints", _pickles),
    Reader("own checkpoints", _own),
    Reader("CIFAR", _cifar),
    Reader("YAML", _yaml),
    Reader("overrides", _overrides),
    Reader("run directories", _results),
    Reader("tar shards", _shards),
    Reader("lists", _lists),
    Reader("ledgers", _ledger),
    Reader("Qt resources", _resources),
)
