"""Others' logs, in the forms that their programs write, and what is said of them in tables."""

from __future__ import annotations

import json
import math
import re
import statistics
from pathlib import Path

import pycocotools.mask as mask_util
import pytest
from PIL import Image

from intl_transfer.cli import main
from intl_transfer.data.coco_metrics import REFERENCE, coco_metrics
from intl_transfer.data.detection_contents import open_set, truth_of
from intl_transfer.data.detection_sets import DetectionSet
from intl_transfer.errors import UserError
from intl_transfer.results import build_tables, collect, render
from intl_transfer.results.importers import coco, import_results, lightning, openmmlab, vissl
from intl_transfer.results.importers.found import Found, percentage
from tests.detection.coco_sets import by_pycocotools, load, make_set

LOGS = Path(__file__).parent / "logs"
ENGINE = [
    {"lr": 0.02, "data_time": 0.01, "loss": 0.9, "epoch": 11, "iter": 80630, "memory": 5000,
     "step": 80630},
    {"coco/bbox_mAP": 0.4, "coco/bbox_mAP_50": 0.61, "coco/bbox_mAP_75": 0.44, "step": 11},
    {"lr": 0.0002, "data_time": 0.01, "loss": 0.7, "epoch": 12, "iter": 87950, "memory": 5000,
     "step": 87950},
    {"coco/bbox_mAP": 0.382, "coco/bbox_mAP_50": 0.588, "coco/bbox_mAP_75": 0.414,
     "coco/bbox_mAP_s": 0.219, "coco/bbox_mAP_m": 0.409, "coco/bbox_mAP_l": -1.0,
     "coco/segm_mAP": 0.347, "coco/segm_mAP_50": 0.557, "coco/segm_mAP_75": 0.372,
     "data_time": 0.03, "time": 0.2, "step": 12},
]  # fmt: skip
OLD = [
    {"env_info": "sys.platform: linux", "config": "model = dict()", "seed": 7, "exp_name": "m.py"},
    {"mode": "train", "epoch": 12, "iter": 7300, "lr": 0.0002, "memory": 3800, "loss": 0.6},
    {"mode": "val", "epoch": 12, "iter": 625, "lr": 0.0002, "bbox_mAP": 0.374,
     "bbox_mAP_50": 0.581, "bbox_mAP_75": 0.404, "bbox_mAP_copypaste": "0.374 0.581 0.404"},
]  # fmt: skip
VISSL = [
    {"iteration": 8000, "phase_idx": 52, "train_accuracy_list_meter": {"top_1": {"0": 60.0}},
     "train_phase_idx": 26},
    {"iteration": 8000, "phase_idx": 53, "test_accuracy_list_meter": {"top_1": {"0": 71.0},
     "top_5": {"0": 90.0}}, "train_phase_idx": 26},
    {"iteration": 9000, "phase_idx": 54, "train_accuracy_list_meter": {"top_1": {"0": 61.0}},
     "train_phase_idx": 27},
    {"iteration": 9000, "phase_idx": 55, "test_accuracy_list_meter": {"top_1": {"0": 69.9},
     "top_5": {"0": 89.4}}, "train_phase_idx": 27},
]  # fmt: skip
SOLO = """epoch,step,train_loss,val_acc1,val_acc5,val_knn_acc1
998,194999,0.5,,,
998,194999,,93.1,99.9,90.0
999,195199,0.4,,,
999,195199,,92.58,99.79,88.6
"""


def lines(folder, name, content):
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(one) + "\n" for one in content))
    return file


def test_openmmlabs_engine(tmp_path):
    lines(tmp_path, "20240101_000000/vis_data/scalars.json", ENGINE)
    found = openmmlab.read(tmp_path)
    assert found.metrics["box"] == pytest.approx(
        {"AP": 38.2, "AP50": 58.8, "AP75": 41.4, "APs": 21.9, "APm": 40.9, "APl": None}
    )
    assert found.metrics["mask"]["AP"] == pytest.approx(34.7)
    file = lines(tmp_path, "cut.json", ENGINE[:3])
    with pytest.raises(UserError, match=r"at epoch 11, .* is not of the end: training .* epoch 12"):
        openmmlab.read(file)
    lines(tmp_path, "20240102_000000/vis_data/scalars.json", ENGINE)
    with pytest.raises(UserError, match=r"found 2: .*Give the one that counts"):
        openmmlab.read(tmp_path)
    with pytest.raises(UserError, match="no evaluation"):
        openmmlab.read(lines(tmp_path, "none.json", ENGINE[:1]))


def test_openmmlabs_older_logs(tmp_path):
    file = lines(tmp_path, "20200101_000000.log.json", OLD)
    with open(file, "a") as out:
        out.write('{"mode": "train", "ep')  # killed while it wrote
    found = openmmlab.read(tmp_path)
    assert found.metrics == {"box": pytest.approx({"AP": 37.4, "AP50": 58.1, "AP75": 40.4})}
    assert (found.stated, found.epoch) == ({"seed": 7}, 12)
    file.write_text("nonsense\n" + json.dumps(OLD[2]) + "\n")
    with pytest.raises(UserError, match=r"line 1 is not valid JSON"):
        openmmlab.read(file)


def test_logs_that_the_programs_wrote():
    """MMEngine 0.10.7's Runner and VISSL 0.1.6's meters and hook, with made-up models."""
    found = openmmlab.read(LOGS / "mmengine_epochs.json")
    assert found.metrics["box"] == pytest.approx(
        {"AP": 33, "AP50": 53, "AP75": 34, "APs": 18, "APm": 36, "APl": 45}
    )
    assert (found.metrics["mask"]["APl"], found.at, found.epoch) == (42, "epoch 3", 3)
    # A loop of iterations: the engine writes step 0 beside each evaluation.
    found = openmmlab.read(LOGS / "mmengine_iterations.json")
    assert (found.metrics["box"]["AP"], found.at, found.epoch) == (32, "iteration 12", None)
    found = openmmlab.read(LOGS / "mmengine_voc.json")
    assert found.metrics == {"voc": {"mAP": pytest.approx(54.3), "AP50": pytest.approx(54.3)}}
    found = vissl.read(LOGS / "vissl_two_heads.json", "res5")
    assert (found.metrics, found.epoch) == ({"top1": 71.875, "top5": 95.3125}, 3)


@pytest.mark.parametrize("name", ["mmengine_epochs", "mmengine_iterations", "mmengine_voc"])
@pytest.mark.parametrize("kept", range(1, 9))
def test_a_log_cut_anywhere_gives_its_end_or_nothing(tmp_path, name, kept):
    lines = (LOGS / f"{name}.json").read_text().splitlines(keepends=True)
    kept = min(kept, len(lines))
    (tmp_path / "scalars.json").write_text("".join(lines[:kept]))
    if "mAP" in lines[kept - 1]:
        openmmlab.read(tmp_path)
    else:
        with pytest.raises(UserError, match=r"not of the end|no evaluation"):
            openmmlab.read(tmp_path)


def test_vissl(tmp_path):
    file = lines(tmp_path, "metrics.json", VISSL)
    found = vissl.read(tmp_path)
    assert (found.metrics, found.epoch) == ({"top1": 69.9, "top5": 89.4}, 28)
    with pytest.raises(UserError, match="continued to training phase 27"):
        vissl.read(lines(tmp_path, "cut.json", VISSL[:3]))
    several = [{**VISSL[3], "test_accuracy_list_meter": {"top_1": {"res4": 60.0, "res5": 70.0}}}]
    lines(tmp_path, "metrics.json", several)
    with pytest.raises(UserError, match="found 2: res4, res5; give --layer"):
        vissl.read(file)
    assert vissl.read(file, "res5").metrics == {"top1": 70.0}


def test_lightning(tmp_path):
    file = tmp_path / "version_0" / "metrics.csv"
    file.parent.mkdir()
    file.write_text(SOLO)
    assert lightning.read(tmp_path).metrics == {"top1": 92.58, "top5": 99.79}
    assert lightning.read(tmp_path, "knn").metrics == {"top1": 88.6}
    file.write_text(SOLO + "1000,195399,0.4,,,\n")
    with pytest.raises(UserError, match="continued to epoch 1000"):
        lightning.read(file)
    file.write_text("epoch,step,val/acc\n0,9,0.5\n1,19,0.625\n")
    with pytest.raises(UserError, match=r"none of solo-learn's columns .* epoch, step, val/acc"):
        lightning.read(file)
    with pytest.raises(UserError, match="percent or a fraction is not known"):
        lightning.read(file, column="val/acc")
    assert lightning.read(file, column="val/acc", unit="fraction").metrics == {"top1": 62.5}


def test_lightning_as_its_own_logger_writes_it(tmp_path):
    loggers = pytest.importorskip("lightning_fabric.loggers")
    logger = loggers.CSVLogger(tmp_path, name="logs")
    for epoch, acc in enumerate((50.0, 61.0, 60.5)):
        logger.log_metrics({"epoch": epoch, "train_loss": 1.0}, step=10 * epoch)
        logger.log_metrics({"epoch": epoch, "val_acc1": acc, "val_acc5": 90.0}, step=10 * epoch + 9)
    logger.save()
    found = lightning.read(tmp_path / "logs")
    assert (found.metrics, found.epoch) == ({"top1": 60.5, "top5": 90.0}, 3)


TRUTH = {
    "images": [{"id": 1, "width": 100, "height": 100}, {"id": 2, "width": 100, "height": 100}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 3, "bbox": [10, 10, 40, 40], "area": 1600,
         "iscrowd": 0, "segmentation": [[10, 10, 50, 10, 50, 50, 10, 50]]},
        {"id": 2, "image_id": 2, "category_id": 3, "bbox": [20, 20, 40, 40], "area": 1600,
         "iscrowd": 0, "segmentation": [[20, 20, 60, 20, 60, 60, 20, 60]]},
    ],
    "categories": [{"id": 3, "name": "cat"}],
}  # fmt: skip


def boxes(*found):
    return [
        {"image_id": image, "category_id": 3, "bbox": box, "score": score}
        for image, box, score in found
    ]


def test_cocos_results(tmp_path):
    from faster_coco_eval import COCO, COCOeval_faster

    (tmp_path / "gt.json").write_text(json.dumps(TRUTH))
    detections = boxes((1, [10, 10, 40, 40], 0.9), (2, [24, 20, 40, 40], 0.8),
                       (2, [70, 70, 9, 9], 0.85))  # fmt: skip
    (tmp_path / "dt.json").write_text(json.dumps(detections))
    found = coco.read(tmp_path / "dt.json", tmp_path / "gt.json")
    truth = COCO(str(tmp_path / "gt.json"))
    other = COCOeval_faster(
        truth, truth.loadRes(str(tmp_path / "dt.json")), "bbox", print_function=str
    )
    other.run()
    assert found.metrics["box"]["AP"] == pytest.approx(100 * other.stats[0], abs=1e-9)
    assert found.metrics["box"]["AP50"] == pytest.approx(100 * other.stats[1], abs=1e-9)
    # By hand: a hit, a false alarm, a hit at IoU 0.82: 51 recalls at precision 1, 50 at 2/3.
    assert found.metrics["box"]["AP50"] == pytest.approx(100 * (51 + 50 * 2 / 3) / 101)
    assert found.metrics["box"]["per_class"] == {"cat": pytest.approx(found.metrics["box"]["AP"])}
    assert found.metrics["box"]["APs"] is None  # no small object
    assert set(found.metrics) == {"box"}
    masks = [{**one, "segmentation": truth_["segmentation"]}
             for one, truth_ in zip(detections[:2], TRUTH["annotations"], strict=True)]  # fmt: skip
    (tmp_path / "m.json").write_text(json.dumps(masks))
    found = coco.read(tmp_path / "m.json", tmp_path / "gt.json")
    assert found.metrics["mask"]["AP"] == pytest.approx(100)
    assert found.metrics["box"]["AP"] < 100


def read_coco(folder, content, found):
    (folder / "gt.json").write_text(json.dumps(content))
    (folder / "dt.json").write_text(json.dumps(found))
    return coco.read(folder / "dt.json", folder / "gt.json").metrics


def named(content, found):
    """Ids of images and classes that are text."""
    for row in (*content["annotations"], *found):
        row["image_id"], row["category_id"] = f"i{row['image_id']}", f"c{row['category_id']}"
    for kind in ("images", "categories"):
        for row in content[kind]:
            row["id"] = f"{kind[0]}{row['id']}"


def consistent(content):
    """Boxes and areas are those of the masks, as fine-tuning's reader demands."""
    truth, things = load(content), []
    for thing in content["annotations"]:
        mask = truth.annToRLE(thing)
        if area := int(mask_util.area(mask)):
            thing.update(bbox=mask_util.toBbox(mask).tolist(), area=area, ignore=0)
            things.append(thing)
    content["annotations"] = things


@pytest.mark.parametrize("change", [None, named])
@pytest.mark.parametrize("seed", [3, 5, 8])
def test_cocos_results_with_boxes_and_masks(tmp_path, seed, change):
    """All twelve, as pycocotools has them where masks come without boxes: sizes are of masks."""
    content, found = make_set(seed, detections=20)
    consistent(content)
    if change is not None:
        change(content, found)
    metrics = read_coco(tmp_path, content, found)
    for task, kind in (("box", "bbox"), ("mask", "segm")):
        stats = by_pycocotools(content, found, kind).stats
        expected = [None if value < 0 else pytest.approx(100 * value) for value in stats]
        assert [value for name, value in metrics[task].items() if name != "per_class"] == expected


def test_masks_are_measured_by_their_own_area(tmp_path):
    """A thin frame: its box has 6400 pixels (medium), it has 316 (small)."""
    frame = [[0, 0, 80, 0, 80, 80, 0, 80, 0, 79, 79, 79, 79, 1, 1, 1, 1, 79, 0, 79]]
    other = [
        {**TRUTH["annotations"][0], "segmentation": frame, "bbox": [0, 0, 80, 80], "area": 316}
    ]
    found = [{"image_id": 1, "category_id": 3, "score": 0.5, "segmentation": frame}]
    false = {"image_id": 2, "category_id": 3, "score": 0.9, "segmentation": frame}
    for extra in ({}, {"bbox": [0, 0, 80, 80]}):  # polygons, without boxes and with
        detections = [{**one, **extra} for one in (*found, false)]
        metrics = read_coco(tmp_path, {**TRUTH, "annotations": other}, detections)
        assert set(metrics) == {"mask", *(["box"] if extra else [])}
        # The false alarm is as small as the object; counted as a medium one it would be ignored.
        assert metrics["mask"]["APs"] == metrics["mask"]["AP"] == pytest.approx(50)
    for mask, expected in (
        ([[1, 1, 5]], r"detection 1: segmentation has a polygon of 3 numbers"),
        ([], r"detection 1: segmentation is empty"),
        ({"size": [9, 9], "counts": "Q2"}, r"expected its image's \[height, width\], \[100, 100\]"),
    ):
        with pytest.raises(UserError, match=expected):
            read_coco(tmp_path, TRUTH, [found[0], {**false, "segmentation": mask}])


def test_annotations_counted_from_zero_are_numbered_from_one(tmp_path, capsys):
    """As `truth_of` numbers them where fine-tuning evaluates; by pycocotools, 0 is 'unmatched'."""
    one, other = ({**thing, "id": thing["id"] - 1} for thing in TRUTH["annotations"])
    found = boxes((1, [10, 10, 40, 40], 0.9), (2, [20, 20, 40, 40], 0.8))
    content = {**TRUTH, "annotations": [one, other]}
    metrics = read_coco(tmp_path, content, found)
    assert metrics["box"]["AP"] == pytest.approx(100)
    assert "gt.json: ids counted from 0, renumbered" in capsys.readouterr().err
    assert by_pycocotools(content, found, "bbox").stats[0] < 0.3
    assert by_pycocotools(TRUTH, found, "bbox").stats[0] == pytest.approx(1)
    read_coco(tmp_path, TRUTH, found)
    assert capsys.readouterr().err == ""


def test_annotations_are_read_as_fine_tuning_reads_them(tmp_path, capsys):
    """Its reader and evaluation of the same file, beside images, are the reference."""
    sides = {"width": 100, "height": 100}
    folder = tmp_path / "images"
    folder.mkdir()
    for number in (1, 2):
        Image.new("RGB", (100, 100)).save(folder / f"{number}.png")
    boxes_of = {1: [10, 10, 20, 20], 2: [20, 20, 60, 60]}
    images = [{"id": n, "file_name": f"{n}.png", **sides} for n in boxes_of]
    things = [
        {"id": n, "image_id": n, "category_id": 3, "bbox": box, "area": box[2] * box[3]}
        for n, box in boxes_of.items()
    ]
    found = boxes((1, boxes_of[1], 0.9), (2, boxes_of[2], 0.8))
    one, other = things
    bare = [{key: value for key, value in thing.items() if key != "area"} for thing in things]
    for listed, expected in (
        (things, None),
        ([*things, {**one, "id": 9}, other], None),  # listed twice, by another id and by the same
        ([{**one, "area": 0}, {**other, "area": 0}], None),
        (bare, None),
        ([{**one, "category_id": "3"}, {**other, "image_id": "02"}], None),
        ([{**one, "image_id": 77}, other], "image 77, which is not listed"),
        ([{**one, "ignore": 1}, other], "ignore is 1"),
        ([{**one, "bbox": [200, 10, 20, 20]}, other], "lies outside its image"),
    ):
        content = {**TRUTH, "images": images, "annotations": listed}
        (tmp_path / "gt.json").write_text(json.dumps(content))
        theirs = open_set(DetectionSet("x", "coco", folder, tmp_path / "gt.json"))
        if expected is not None:
            assert expected in theirs.problems[0]
            with pytest.raises(UserError, match=re.escape(theirs.problems[0])):
                read_coco(tmp_path, content, found)
            continue
        figures = coco_metrics(truth_of(theirs), found, "bbox", REFERENCE).metrics()
        percent = {key: percentage(value, 100) for key, value in figures.items()}
        ours = read_coco(tmp_path, content, found)["box"]
        assert {key: ours[key] for key in percent} == percent
        assert ours["APs"] == ours["APm"] == pytest.approx(100)
        assert all(note in capsys.readouterr().err for note in theirs.notes)
    text = json.dumps({**TRUTH, "annotations": things})
    (tmp_path / "gt.json").write_text(f'{text[:-1]}, "annotations": []}}')
    with pytest.raises(UserError, match="the key 'annotations' twice"):
        coco.read(tmp_path / "dt.json", tmp_path / "gt.json")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"annotations": []}, "expected a JSON list of detections, found dict"),
        ([], "expected detections with bbox or segmentation"),
        ([{"image_id": 1, "score": 1}], "detection 0: no category_id"),
        (boxes((9, [1, 1, 2, 2], 0.5)), "image 9, category 3 is not in"),
        (boxes(([1], [1, 1, 2, 2], 0.5)), r"image \[1\], category 3 is not in"),
        ([None], "detection 0: no image_id, category_id, score"),
        (boxes((1, "x", 0.5)), "bbox is 'x'; expected four finite numbers"),
        (boxes((1, [1, 1, float("nan"), 2], 0.5)), r"bbox is \[1, 1, nan, 2\]; expected four"),
        (boxes((1, [1, 1, 2, 2], None)), "detection 0: score is None; expected a finite number"),
        (boxes((1, [1, 1, 2, 2], float("nan"))), "score is nan; expected a finite number"),
    ],
)
def test_results_that_are_no_cocos(tmp_path, content, expected):
    (tmp_path / "gt.json").write_text(json.dumps(TRUTH))
    (tmp_path / "dt.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=expected):
        coco.read(tmp_path / "dt.json", tmp_path / "gt.json")


def test_they_become_rows_that_say_what_is_not_known(tmp_path, capsys):
    lines(tmp_path, "a.log.json", OLD)
    out = tmp_path / "runs" / "mmdet"
    words = ["import", "openmmlab", str(tmp_path), "--out", str(out), "--method", "MoCo v2"]
    assert main([*words, "--dataset", "coco_2017_val", "--schedule", "1x", "--seed", "3"]) == 2
    assert "--seed 3: the file states 7" in capsys.readouterr().err
    assert main([*words, "--dataset", "coco_2017_val", "--schedule", "1x"]) == 0
    assert main(words) == 2
    assert "already contains a run" in capsys.readouterr().err
    assert main(["check", str(out)]) == 0
    (tmp_path / "metrics.csv").write_text(SOLO)
    found = lightning.read(tmp_path / "metrics.csv")
    import_results(found, tmp_path / "runs" / "solo", "BYOL", "metrics.csv", {"dataset": "cifar10"})
    tables = build_tables(collect([tmp_path / "runs"], cache=False))
    assert all(row.external for table in tables for row in table.rows)
    text = render(tables, "md")
    assert "external: measured by OpenMMLab, not by this project" in text
    assert (
        "not stated: backbone, detector, head, iterations, batch size, learning rate, pretraining"
    ) in text
    assert "37.4" in text
    assert "92.6" in text
    assert "not stated: seed, backbone, epochs of the evaluation" in text


def test_imports_without_a_seed_are_no_repeats(tmp_path):
    """Three of unknown seeds count, n = 3; a seed that was stated twice, too, and it is said."""
    accuracies = (60.0, 61.0, 65.0)
    for name, top1 in zip("zay", accuracies, strict=True):
        found = Found({"top1": top1}, "A", detection=False)
        for kind, facts in (("unknown", {}), ("stated", {"seed": 4})):
            import_results(found, tmp_path / kind / name, "BYOL", "m.csv", facts)
    unknown, stated = (collect([tmp_path / kind], cache=False) for kind in ("unknown", "stated"))
    for one in (unknown, stated):
        ((row,),) = (table.rows for table in build_tables(one))
        (summary,) = row.metrics.values()
        assert (summary.n, summary.mean) == (3, pytest.approx(statistics.mean(accuracies)))
        assert summary.std == pytest.approx(statistics.stdev(accuracies))
    assert not [text for text in unknown.problems if "seed" in text]
    assert [("both count" in text) for text in stated.problems if "same seed" in text] == [True] * 2


def test_percentages_alone_become_rows(tmp_path):
    file = lines(tmp_path, "m.json", [{"bbox_mAP": 37.4, "mode": "val", "epoch": 1}])
    with pytest.raises(UserError, match="expected a percentage"):
        import_results(openmmlab.read(file), tmp_path / "x", "A", "m.json")
    assert not (tmp_path / "x").exists()


def _vissl(phase, top_1=None):
    meter = {"top_1": {"0": top_1}, "top_5": {"0": 89.4}} if top_1 else {"top_1": {"0": 1.0}}
    kind = "train" if top_1 is None else "test"
    return json.dumps({"train_phase_idx": phase, f"{kind}_accuracy_list_meter": meter})


def _lightning(epoch, top_1=None):
    return f"{epoch},{'' if top_1 is None else top_1},{'' if top_1 is None else 89.4}"


def _by_epoch(epoch, ap=None):
    train = {"loss": 1.0, "epoch": epoch, "iter": 10, "step": 100 * epoch}
    return json.dumps(train if ap is None else _of(ap, epoch))


def _by_iteration(iteration, ap=None):
    return json.dumps(
        {"loss": 1.0, "step": iteration, "iter": iteration} if ap is None else _of(ap, 0)
    )


def _of(ap, step):
    return {"coco/bbox_mAP": ap / 100, "coco/bbox_mAP_50": 0.55, "step": step}


@pytest.mark.parametrize(
    ("read", "name", "head", "line"),
    [
        (vissl.read, "metrics.json", [], _vissl),
        (lightning.read, "metrics.csv", ["epoch,val_acc1,val_acc5"], _lightning),
        (openmmlab.read, "scalars.json", [], _by_epoch),
        (openmmlab.read, "scalars.json", [], _by_iteration),
    ],
    ids=["vissl", "lightning", "epochs", "iterations"],
)
def test_only_the_end_of_a_log_counts(tmp_path, read, name, head, line):
    """Of whatever program: trained to 9, or begun again after that."""

    def found(*parts):
        (tmp_path / name).write_text("\n".join([*head, *parts]) + "\n")
        return read(tmp_path)

    whole = [line(3), line(3, 40.0), line(9), line(9, 30.0)]
    undisturbed = found(*whole)
    assert 30.0 in (undisturbed.metrics.get("box") or undisturbed.metrics).values()
    assert found(*whole, *whole) == undisturbed  # again, to the end
    assert found(*whole[:3], *whole) == undisturbed  # continued from an earlier checkpoint
    with pytest.raises(UserError, match=r"began again at .* 3\b.* after its last evaluation"):
        found(*whole, line(3))
    with pytest.raises(UserError, match=r"is not of the end: training continued to"):
        found(*whole, line(3), line(3, 20.0))
    with pytest.raises(UserError, match=r"its last evaluation has \S+ nan, expected a number"):
        found(*whole[:3], line(9, math.nan))
