"""What is exported, read by the readers of those whose form it is."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import re
import shutil
import struct
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from intl_transfer.cli import main
from intl_transfer.errors import UserError
from intl_transfer.results import build_tables, collect, render
from intl_transfer.results.exports import _runs, export
from intl_transfer.results.longform import COLUMNS, as_parquet
from tests.results.synthetic import (
    detection_run,
    evaluation_run,
    external_run,
    pretraining_run,
)

APS = (38.0, 38.4, 38.9)
MEASURED = Path(__file__).parents[2] / "docs" / "results" / "corpus" / "methods"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    pretraining_run(root)
    (root / "pretrain" / "README.md").write_text("---\nlibrary_name: timm\n---\n\n# INTL\n")
    for seed, ap in enumerate(APS):
        detection_run(root, f"coco{seed}", ap, seed=seed)
    evaluation_run(root, "linear", dataset="cifar10", top1=91.5)
    return root


@pytest.fixture(scope="module")
def tables(runs):
    return build_tables(collect([runs], cache=False), published=True)


def test_pandas_reads_one_line_per_run_and_metric(tables):
    frame = pd.read_csv(io.StringIO(render(tables, "long")))
    assert list(frame) == list(COLUMNS)
    own = frame[(frame.source == "measured") & (frame.task == "box") & (frame.metric == "AP")]
    assert own.value.tolist() == list(APS)
    assert own.seed.tolist() == [0, 1, 2]
    assert own.value.std() == pytest.approx(np.std(APS, ddof=1))
    assert (frame[frame.dataset == "cifar10"].query("source == 'measured'").value.max()) == 99.5
    moco = frame[(frame.initialization == "MoCo v2") & (frame.schedule == "24k")]
    assert moco[moco.metric == "AP"]["std"].tolist() == [0.2, 0.2]
    assert moco.n.tolist() == [5] * 6
    assert moco.source.unique().tolist() == ["MoCo detection README"]
    keys = ["table", "initialization", "pretraining", "source", "run", "task", "metric"]
    assert not frame.duplicated(keys).any()


def test_parquet_is_typed_and_the_same(tables, tmp_path):
    pytest.importorskip("pyarrow")
    (tmp_path / "runs.parquet").write_bytes(as_parquet(tables))
    frame = pd.read_parquet(tmp_path / "runs.parquet")
    assert {name: str(kind) for name, kind in frame.dtypes.items()} == COLUMNS
    text = pd.read_csv(io.StringIO(render(tables, "long")))
    assert np.array_equal(frame.value, text.value)
    assert frame.seed.isna().sum() == text.seed.isna().sum() > 0


def test_parquet_without_pyarrow_says_what_to_install(tables, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"pip install 'intl-transfer\[parquet\]'"):
        as_parquet(tables)


def test_files_by_their_names(runs, tmp_path, capsys):
    assert main(["collect", str(runs), "--out", str(tmp_path / "runs.long.csv")]) == 0
    assert (tmp_path / "runs.long.csv").read_text().startswith("table,family,dataset")
    assert str(runs) not in (tmp_path / "runs.long.csv").read_text()
    assert main(["collect", str(runs), "--format", "parquet"]) == 2
    assert "needs a file" in capsys.readouterr().err
    if importlib.util.find_spec("pyarrow"):
        assert main(["collect", str(runs), "--out", str(tmp_path / "r.parquet")]) == 0
        frame = pd.read_parquet(tmp_path / "r.parquet")
        assert set(frame.run.dropna()) >= {"coco0", "linear"}


def test_json_has_the_figures_of_every_seed(tables):
    table = json.loads(render(tables, "json"))[0]
    row = table["rows"][0]
    assert row["figures"]["box"]["AP"]["values"] == list(APS)
    assert row["figures"]["box"]["AP"]["seeds"] == [0, 1, 2]
    assert [run["figures"]["box"]["AP"] for run in row["runs"]] == list(APS)


def test_mlflow_reads_what_is_exported(tables, tmp_path):
    mlflow = pytest.importorskip("mlflow")
    assert "4 runs" in export(tables, f"mlflow={tmp_path / 'mlruns'}")
    client = mlflow.MlflowClient(tracking_uri=(tmp_path / "mlruns").as_uri())
    (experiment,) = client.search_experiments(filter_string="name = 'intl-transfer'")
    found = client.search_runs([experiment.experiment_id])
    aps = {run.data.params["seed"]: run.data.metrics.get("box.AP") for run in found
           if run.data.params["dataset"] == "coco_2017_val"}  # fmt: skip
    assert aps == {str(seed): ap for seed, ap in enumerate(APS)}
    linear = next(run for run in found if run.data.params["dataset"] == "cifar10")
    assert linear.data.metrics == {"cifar10.top-1": 91.5, "cifar10.top-5": 99.5}
    assert linear.info.status == "FINISHED"


def test_a_run_whose_seed_nobody_stated_is_exported_and_says_so(tmp_path):
    mlflow = pytest.importorskip("mlflow")
    external_run(tmp_path / "runs", "moco_v2", 38.9)
    external_run(tmp_path / "runs", "byol_seed0", 38.9)
    found = build_tables(collect([tmp_path / "runs"], cache=False))
    export(found, f"mlflow={tmp_path / 'mlruns'}")
    client = mlflow.MlflowClient(tracking_uri=(tmp_path / "mlruns").as_uri())
    runs = client.search_runs([one.experiment_id for one in client.search_experiments()])
    names = {run.info.run_name.rpartition(", ")[2]: run.data.params.get("seed") for run in runs}
    assert names == {"seed not stated": None, "seed 0": "0"}


def wandb_records(data):
    """A .wandb file's records: after 7 bytes, LevelDB's log in blocks of 32 KiB."""
    at, whole = 7, b""
    while at + 7 <= len(data):
        if (room := 32768 - at % 32768) < 7:
            at += room
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or its last part
            yield whole
            whole = b""


def test_wandbs_messages_hold_what_is_exported(tables, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    from wandb.proto import wandb_internal_pb2

    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    detection = [table for table in tables if any(not row.published for row in table.rows)][:1]
    assert "3 offline runs" in export(detection, f"wandb={tmp_path / 'w'}")
    files = sorted((tmp_path / "w").rglob("*.wandb"))
    assert len(files) == 3
    found = set()
    for file in files:
        for data in wandb_records(file.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            for item in record.summary.update:
                name = item.key or ".".join(item.nested_key)
                if name == "box.AP":
                    found.add(json.loads(item.value_json))
    assert found == set(APS)


def test_the_model_card_has_the_results_once(runs, tables, tmp_path):
    card = runs / "pretrain" / "README.md"
    for _ in range(2):
        assert "metrics written" in export(tables, f"card={card}")
    text = card.read_text()
    matter = yaml.safe_load(text.split("---")[1])
    assert matter["library_name"] == "timm"
    values = {
        result["metrics"][0]["name"]: result["metrics"][0]["value"]
        for result in matter["model-index"][0]["results"]
    }
    assert values["COCO det. AP"] == pytest.approx(np.mean(APS))
    assert text.count("## Results") == 1
    plan = "schedule 1x (90000 iterations, batch 16, lr 0.02)"
    data = f"coco\\_2017\\_val, Mask R-CNN resnet50-C4, {plan}"
    assert f"| INTL [1] | {data} | COCO det. AP | 38.43 ± 0.45 | 3 |" in text
    assert "[1] fine-tunings of one pretraining: the spread over" in text
    assert text.count("# INTL") == 1
    # Beside the weights themselves, wherever they were copied.
    (tmp_path / "README.md").write_text("# mine\n")
    with pytest.raises(UserError, match="no row of the tables is initialized with a backbone"):
        export(tables, f"card={tmp_path / 'README.md'}")
    (tmp_path / "w.safetensors").write_bytes(b"weights")
    sha = hashlib.sha256(b"weights").hexdigest()
    evaluation_run(tmp_path / "runs", "l", origin={"sha": sha})
    mine = build_tables(collect([tmp_path / "runs"], cache=False))
    assert "2 metrics" in export(mine, f"card={tmp_path / 'README.md'}")


def test_controls_are_no_results_of_a_model_card(tmp_path):
    names = ("pretrain/intl_seed0", "pretrain/intl_seed1", "detection/coco/intl_seed0_seed0")
    names += ("detection/coco/intl_seed1_seed0", "detection/coco/control_labels_seed0")
    for name in names:
        shutil.copytree(MEASURED / name, tmp_path / name)
    card = tmp_path / "pretrain" / "intl_seed0" / "README.md"
    card.write_text("---\nlicense: mit\n---\n# INTL\n")
    tables = build_tables(collect([tmp_path], cache=False))
    said = export(tables, f"card={card}")
    (model,) = yaml.safe_load(card.read_text().split("---")[1])["model-index"]
    assert model["name"] == "INTL"
    found = {one["metrics"][0]["name"]: one["metrics"][0]["value"] for one in model["results"]}
    assert len(found) == len(model["results"])  # each once
    results = [json.loads((tmp_path / name / "results.json").read_text()) for name in names[2:4]]
    mean = np.mean([one["metrics"]["box"]["AP"] for one in results])
    assert "1 rows of controls left out" in said
    which = "2 pretrainings (seeds 0, 1)"
    assert found[f"shapes_coco det. AP, mean of {which}"] == pytest.approx(mean)
    assert f"| {which} |" in card.read_text()
    shutil.rmtree(tmp_path / "detection/coco/intl_seed0_seed0")
    shutil.rmtree(tmp_path / "detection/coco/intl_seed1_seed0")
    alone = build_tables(collect([tmp_path / "detection", tmp_path / "pretrain"], cache=False))
    controls = [table for table in alone if table.family == "detection"]
    with pytest.raises(UserError, match=r"no row of the tables .* controls left out"):
        export(controls, f"card={card}")


def test_exports_tell_apart_what_tables_do(tmp_path):
    """By rate, data, share of labels and epochs; with the footnotes of tables."""
    hub = pytest.importorskip("huggingface_hub.repocard_data")
    (tmp_path / "w.safetensors").write_bytes(b"weights")
    origin, method = {"sha": hashlib.sha256(b"weights").hexdigest()}, "Alpha *x* <b>"
    plan = {"name": "1x", "iterations": 90000, "batch_size": 16}
    for rate in (0.02, 0.002):
        run = {"schedule": {**plan, "base_lr": rate}, **origin}
        detection_run(tmp_path, f"lr {rate}", 1000 * rate + 10, method=method, **run)
    seen = {"name": "voc_2007_test", "train": ["voc_2007_test"], "layout": "voc", "images": 4952}
    detection_run(tmp_path, "seen", method=method, layout="voc", dataset=seen, **origin)
    common = {"method": method, "origin": origin}
    for share in (1, 10):
        few = {"epochs": 20, "labels_percent": share}
        evaluation_run(tmp_path, f"{share} %", kind="semi", protocol=few, **common)
    large = {"dataset": "imagenet", "backbone": "resnet50", "method": method}
    evaluation_run(tmp_path, "linear", **large, origin={**origin, "epochs": 100})
    tables = build_tables(collect([tmp_path], cache=False))
    card = tmp_path / "README.md"
    card.write_text("---\nlicense: mit\n---\n")
    export(tables, f"card={card}")
    ((name, index),) = [
        hub.model_index_to_eval_results([model])
        for model in yaml.safe_load(card.read_text().split("---")[1])["model-index"]
    ]
    assert name == method
    assert {one.metric_type for one in index} == {"AP50", "AP", "AP75", "top-1", "top-5"}
    keys = [(one.unique_identifier, one.metric_type) for one in index]
    assert len(set(keys)) == len(keys) > 10  # as the hub's own library groups them
    text = card.read_text()
    number = re.search(r"\[(\d)\] tested on the training images", text)[1]
    marked = [line for line in text.splitlines() if re.match(rf"\| .* \[[\d,]*{number}", line)]
    assert len(marked) == 3
    assert all("| Alpha \\*x\\* \\<b\\> [" in line and "voc\\_2007" in line for line in marked)
    found = list(_runs(tables, str))
    assert len({one.name for one in found}) == len(found) == 6
    assert {one.described.get("lr") for one in found} == {"0.02", "0.002", None}
    (warned,) = [one for one in found if "training images" in one.described["notes"]]
    assert warned.described["protocol"].startswith("voc_2007_test, Faster R-CNN")
    frame = pd.read_csv(io.StringIO(render(tables, "long")))
    assert (frame.groupby("protocol").run.nunique() == 1).all()
    assert frame.protocol.nunique() == 6


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("mlfow=x", "expected KIND=TARGET.* Did you mean 'mlflow'"),
        ("mlflow", "expected KIND=TARGET"),
        ("card=absent.md", "found none"),
    ],
)
def test_what_is_refused(tables, where, expected):
    with pytest.raises(UserError, match=expected):
        export(tables, where)
