from __future__ import annotations

import json
import shutil

import pytest
import torch
from PIL import Image

from intl_transfer.cli import main
from intl_transfer.runs import read_manifest, read_metrics, read_results, sha256_file
from tests.detection.conftest import TINY, train_net

COCO, VOC = "shapes_coco_R18_C4.yaml", "shapes_voc_R18_C4"


def budget(iterations: int, period: int = 100) -> list[str]:
    return [*TINY, "SOLVER.MAX_ITER", str(iterations), "SOLVER.CHECKPOINT_PERIOD", str(period)]


@pytest.mark.slow
def test_coco_layout_from_weights(data, backbone_file, tmp_path):
    out = tmp_path / "run"
    done = train_net(
        *(data, "--config", COCO, "--weights", backbone_file, "--seed", 3),
        *("--output-dir", out, *budget(3)),
    )
    assert "no GPU found: using the CPU" in done.stdout
    manifest, results = read_manifest(out), read_results(out)
    assert manifest["status"] == "finished"
    assert manifest["inputs"][0]["sha256"] == sha256_file(backbone_file)
    assert manifest["config"]["MODEL"]["RESNETS"]["DEPTH"] == 18
    assert results["dataset"] == {
        "name": "shapes_coco_val",
        "train": ["shapes_coco_train"],
        "layout": "coco",
        "images": 3,
    }
    assert results["architecture"] == {
        "meta": "Mask R-CNN",
        "backbone": "resnet18",
        "head": "C4",
    }
    assert results["initialization"]["kind"] == "pretrained"
    assert results["initialization"]["provenance"]["backbone"] == "resnet18"
    assert (results["seed"], results["iteration"]) == (3, 3)
    assert set(results["metrics"]) == {"box", "mask"}
    assert len(results["metrics"]["box"]["per_class"]) == 8
    assert results["images_per_second"] > 0
    assert 0 < results["data_share"] < 1
    assert results["wall_time_s"] > 3 * 2 / results["images_per_second"]
    trained, evaluated = read_metrics(out)
    assert trained["iteration"] == evaluated["iteration"] == 3
    assert {"total_loss", "loss_mask", "loss_rpn_cls", "lr"} <= trained.keys()
    for task in ("box", "mask"):
        figures = evaluated["evaluation"][task]
        assert figures == {key: results["metrics"][task][key] for key in ("AP", "AP50", "AP75")}
    with Image.open(out / "predictions.png") as image:
        assert image.width >= 640
    curves = json.loads((out / "curves.json").read_text())
    assert set(curves) == {"box", "mask"}
    assert len(curves["mask"]["0.75"]["precision"]) == 9  # eight classes and their mean
    shown = json.loads((out / "predictions.json").read_text())
    assert all((out / entry["file"]).exists() for entry in shown["images"])
    assert all((out / f"{name}.png").exists() for name in ("precision_recall", "training"))
    assert main(["collect", str(tmp_path)]) == 0

    # Evaluated again from its last checkpoint, it has the same figures.
    arguments = ["--config", COCO, "--output-dir", tmp_path / "again"]
    train_net(*(data, *arguments, "--eval-only", "--weights", out / "model_final.pth", *budget(3)))
    again = json.loads((tmp_path / "again" / "evaluation.json").read_text())
    assert again["metrics"] == results["metrics"]
    lacking = train_net(
        *(data, *arguments, "--eval-only", "--weights", backbone_file, *budget(3)), check=False
    )
    assert lacking.returncode == 2
    assert "are not a detector, but a backbone" in lacking.stderr

    # On a picture, with the run's own configuration.
    picture = next((data / "shapes" / "coco" / "val").glob("*.jpg"))
    demo = tmp_path / "demo"
    output = train_net(data, "--weights", out, "--demo", picture, "--output-dir", demo).stdout
    assert f"{picture} (128 x 128): " in output
    assert (demo / f"{picture.stem}_detections.png").exists()
    neither = train_net(data, "--weights", out, check=False)
    assert neither.returncode == 2
    assert "required: --config" in neither.stderr


@pytest.mark.slow
def test_voc_layout_from_scratch_resumes(data, tmp_path):
    base = ["--config-file", VOC, "--weights", "random"]
    train_net(data, *base, "--output-dir", tmp_path / "whole", *budget(4, period=1))
    results = read_results(tmp_path / "whole")
    assert results["initialization"] == {
        "kind": "random",
        "method": "random init",
        "weights_sha256": None,
        "provenance": None,
    }
    assert set(results["metrics"]) == {"voc"}
    assert results["schedule"]["name"] == "shapes-4"

    # What a kill after the third iteration leaves, with a damaged checkpoint on top.
    part = tmp_path / "part"
    shutil.copytree(tmp_path / "whole", part)
    for name in ("results.json", "model_final.pth"):
        (part / name).unlink()
    manifest = (part / "manifest.json").read_text()
    (part / "manifest.json").write_text(manifest.replace('"finished"', '"running"'))
    (part / "model_0000099.pth").write_bytes(b"half")
    other = ["--output-dir", part, "--seed", 1, *budget(4), "SOLVER.BASE_LR", "0.1"]
    refused = train_net(data, *base, *other, check=False)
    assert refused.returncode == 2
    assert "SEED: 0 before, 1 now; SOLVER.BASE_LR: 0.02 before, 0.1 now" in refused.stderr
    assert "--allow-config-change" in refused.stderr
    # Without its manifest, the newest readable checkpoint says what it was trained with.
    (part / "manifest.json").rename(part / "aside.json")
    refused = train_net(data, *base, *other, "--resume", check=False)
    assert refused.returncode == 2
    assert "SEED: 0 before, 1 now; SOLVER.BASE_LR: 0.02 before, 0.1 now" in refused.stderr
    assert not (part / "manifest.json").exists()
    (part / "aside.json").rename(part / "manifest.json")
    resumed = train_net(data, *base, "--output-dir", part, *budget(4))
    assert "model_0000099.pth is damaged" in resumed.stderr
    assert "Starting training from iteration 3" in resumed.stdout + resumed.stderr
    states = [
        torch.load(folder / "model_final.pth", weights_only=True)["model"]
        for folder in (tmp_path / "whole", part)
    ]
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])
    assert read_results(part)["iteration"] == 4
    assert len(read_manifest(part)["sessions"]) == 2
    for word in ((), ("--resume",)):  # of earlier versions
        done = train_net(data, *base, "--output-dir", part, *word, *budget(4))
        assert "is finished; nothing to do" in done.stdout

    # More iterations are other settings; allowed, they continue from what there is.
    more = [*base, "--output-dir", part, *budget(5)]
    train_net(data, *more, "--allow-config-change")
    assert read_results(part)["iteration"] == 5
    changed = read_manifest(part)["sessions"][-1]["changes"]
    assert changed["SOLVER.MAX_ITER"] == {"before": 4, "now": 5}
    assert read_manifest(part).details == {"configured_batch": 2}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "shapes_coco_R18_C4"], "weights not found: looked for weights/intl_r18.pth"),
        (["--config", "shapes_coco_R18_C5", "--weights", "random"], "Did you mean"),
        (
            ["--config", "coco_R50_C4.yaml", "--weights", "random"],
            "train2017.json is missing",
        ),
        (["--config", COCO, "--weights", "random", "SOLVER.LR", "1"], "no key"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_built(data, tmp_path, arguments, message):
    done = train_net(data, *arguments, check=False, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
