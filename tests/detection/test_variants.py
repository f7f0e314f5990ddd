"""Each variant of the protocol trains, evaluates, resumes and lands in a table, embedded.

What a variant adds to its COCO configuration is put over the embedded one.
"""

from __future__ import annotations

import json
import pickle
import shutil

import pytest
import torch

from detection.config import CONFIGS
from intl_transfer.conversion import convert
from intl_transfer.conversion.metadata import CheckpointMetadata
from intl_transfer.files.yamls import read_yaml
from intl_transfer.results import collect
from intl_transfer.results.render import render
from intl_transfer.results.tables import build_tables
from intl_transfer.runs import read_results
from tests.conversion.layouts import caffe2
from tests.conversion.test_conversion import backbone_state
from tests.detection.conftest import TINY

BUDGET = [*TINY, "SOLVER.MAX_ITER", "2", "SOLVER.CHECKPOINT_PERIOD", "1"]


@pytest.fixture(scope="module")
def msra(tmp_path_factory):
    """Weights under the names of MSRA's R-50.pkl, batch norms folded, as that file has them."""
    folder = tmp_path_factory.mktemp("msra")
    blobs = caffe2(backbone_state("resnet50"), folded=True)
    (folder / "R-50.pkl").write_bytes(pickle.dumps({"blobs": blobs}))
    given = CheckpointMetadata(method="supervised-msra")
    convert(folder / "R-50.pkl", folder / "supervised_msra_r50.pth", given=given)
    return folder / "supervised_msra_r50.pth"


def embedded(folder, name, base):
    """A variant of `coco_R50_C4_1x` over an embedded configuration."""
    values = read_yaml(CONFIGS / f"coco_R50_C4_1x_{name}.yaml")
    values["TEST"] = {"EXPECTED_RESULTS": []}  # of COCO
    file = folder / f"shapes_{name}.yaml"
    file.write_text(json.dumps({**values, "_BASE_": str(CONFIGS / f"{base}.yaml")}))
    return file


def weights_of(folder):
    return torch.load(folder / "model_final.pth", weights_only=True)["model"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "base", "settings", "words"),
    [
        ("intl", "shapes_coco_R18_C4", {"NORM": "SyncBN", "STRIDE_IN_1X1": False}, "NORM SyncBN"),
        (
            "supervised_msra",
            "shapes_coco_R50_C4",
            {"NORM": "naiveSyncBN", "STRIDE_IN_1X1": True},
            "supervised-msra",
        ),
    ],
)
def test_a_variant_trains_evaluates_resumes_and_lands_in_a_table(
    stage, backbone_file, request, tmp_path, variant, base, settings, words
):
    weights = request.getfixturevalue("msra") if "msra" in variant else backbone_file
    config = embedded(tmp_path, variant, base)
    whole, part = tmp_path / "runs" / "whole", tmp_path / "part"
    command = ["--config", config, "--weights", weights]
    assert stage(*command, "--output-dir", whole, *BUDGET) == 0
    results = read_results(whole)
    assert set(results.metrics) == {"box", "mask"}
    config = json.loads((whole / "manifest.json").read_text())["config"]
    found = config["MODEL"]["RESNETS"]
    assert {key: found[key] for key in settings} == settings
    assert config["INPUT"]["FORMAT"] == ("BGR" if "msra" in variant else "RGB")

    # What a kill after its first iteration leaves, and the rest of it.
    shutil.copytree(whole, part)
    for name in ("results.json", "model_final.pth", "model_0000001.pth"):
        (part / name).unlink(missing_ok=True)
    stated = (part / "manifest.json").read_text().replace('"finished"', '"running"')
    (part / "manifest.json").write_text(stated)
    assert stage(*command, "--output-dir", part, *BUDGET) == 0
    again = weights_of(part)
    for name, value in weights_of(whole).items():
        # To rounding: within one process, sums differ with where memory lies.
        assert torch.allclose(value.float(), again[name].float(), rtol=1e-4, atol=1e-6), name

    if variant == "intl":  # beside a run with MoCo's norm, which is of another table
        stated = (part / "manifest.json").read_text().replace('"SyncBN"', '"naiveSyncBN"')
        (part / "manifest.json").write_text(stated)
        part.rename(tmp_path / "runs" / "moco")
    tables = build_tables(collect([tmp_path / "runs"]))
    assert [len(table.rows) for table in tables] == [1] * (2 if variant == "intl" else 1)
    assert words in render(tables, "md")
