from __future__ import annotations

import json
import os
import re

import numpy as np
import pytest
from PIL import Image

from intl_transfer.analysis.style import COLORS
from intl_transfer.results import TableOptions, build_tables, collect, figures
from intl_transfer.results.figures import draw_figures
from intl_transfer.results.series import band, curve, lines_of
from tests.results.synthetic import detection_run, external_run, log_detection, pretraining_run


def draw(root, folder, *formats, published=False):
    found = collect([root])
    return draw_figures(found, build_tables(found, published), folder, formats)


def test_what_the_standard_set_has_figures_for(standard, tmp_path):
    files = draw(standard, tmp_path, "svg", published=True)
    assert [file.stem for file in files] == [
        "ap_coco_2017_val_voc_2007_test",
        "loss_coco_2017_val_1x",
        "lr_coco_2017_val_1x",
        "ap_curve_coco_2017_val_1x",
        "classes_box_coco_2017_val_1x",
        "classes_mask_coco_2017_val_1x",
        "classes_voc_voc_2007_test_24k",
        *("pretrain_loss", "pretrain_lr", "pretrain_knn"),
    ]
    bars, loss = files[0].read_text(), files[1].read_text()
    # Text is text: it can be searched, and set in the paper's font.
    assert "<text" in bars
    for expected in ("COCO det. AP", "39.1", "MoCo v2 (200 ep) (published)"):
        assert expected in bars
    assert "INTL (shapes_r18, 20 ep, shapes), n = 5" in loss
    assert all(color.lower() in loss for color in COLORS[:4])


def test_the_same_figures_make_the_same_file_with_embedded_fonts(tmp_path):
    for seed in (0, 1):
        log_detection(detection_run(tmp_path / "runs", f"r{seed}", 30.0 + seed, seed=seed), seed)
    first = draw(tmp_path / "runs", tmp_path / "a", "pdf", "svg")
    second = draw(tmp_path / "runs", tmp_path / "b", "pdf", "svg")
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes(), one.name
        if one.suffix == ".pdf":
            assert b"/Type3" not in one.read_bytes()
            assert b"/FontFile2" in one.read_bytes()


def test_names_that_mean_something_to_a_typesetter(tmp_path):
    detection_run(tmp_path / "runs", "r", method="$a_b^ \\x{ <script> 中")
    detection_run(tmp_path / "runs", "q", method="../../etc")
    for file in draw(tmp_path / "runs", tmp_path / "out", "svg", "png"):
        assert file.parent == tmp_path / "out"
        if file.suffix == ".svg":
            text = file.read_text()
            assert "$a_b^" in text
            assert "<script>" not in text
        else:
            with Image.open(file) as image:
                assert np.asarray(image.convert("L")).std() > 5


def test_nothing_to_draw(tmp_path):
    assert draw_figures(collect([tmp_path]), [], tmp_path / "out") == []
    pretraining_run(tmp_path)
    assert draw(tmp_path, tmp_path / "out", "pdf") == []


def test_runs_without_or_with_damaged_curves(tmp_path):
    run = detection_run(tmp_path / "runs", "r")
    file = run.path / "metrics.jsonl"
    file.write_text('{"iteration": 1, "total_loss": 2}\n[3]\n{"iteration": "x", "total_loss": 1}\n'
                    '{"iteration": 5, "total_loss": "nan"}\n{"iteration": 9, "tot')  # fmt: skip
    names = [path.stem for path in draw(tmp_path / "runs", tmp_path / "out", "svg")]
    assert not any(name.startswith("loss") for name in names)  # one point is no curve
    with open(file, "ab") as out:
        out.truncate((1 << 30) + 1)  # larger than any run's
    assert lines_of(run.path) == []
    file.unlink()
    os.mkfifo(file)
    assert lines_of(run.path) == []


def test_foreign_curves(tmp_path):
    external_run(tmp_path / "runs", "moco_v2", 38.9, earlier=37.0)
    names = [path.stem for path in draw(tmp_path / "runs", tmp_path / "out", "svg")]
    assert "ap_curve_coco_2017_val_1x" in names
    assert "loss_coco_2017_val_1x" in names


def test_a_curve_that_was_written_twice():
    rows = [{"step": s, "loss": s * 10} for s in (1, 2, 3)] + [{"step": 2, "loss": 99}]
    x, y = curve(rows, "step", lambda row: row.get("loss"))
    assert x.tolist() == [1, 2, 3]
    assert y.tolist() == [10, 99, 30]
    assert curve(rows[:1], "step", lambda row: row.get("loss")) is None


def test_bands_are_mean_and_range_where_runs_have_values():
    first = (np.array([1.0, 2.0, 3.0]), np.array([1.0, 2.0, 3.0]))
    second = (np.array([1.0, 3.0]), np.array([3.0, 7.0]))
    found = band([first, second])
    assert found.n == 2
    assert found.x.tolist() == [1, 2, 3]
    assert found.mean.tolist() == [2, 2, 5]
    assert found.low.tolist() == [1, 2, 3]
    assert found.high.tolist() == [3, 2, 7]


def test_long_curves_are_averaged_in_bins():
    x = np.arange(10_000.0)
    wave = np.sin(x)  # averages out within a bin
    found = band([(x, x + wave), (x, x + 100 + wave)])
    assert len(found.x) == 200
    assert found.mean == pytest.approx(found.x + 50, abs=1)
    assert found.high - found.low == pytest.approx(np.full(200, 100), abs=1e-9)


def test_two_tables_of_one_data_set_do_not_overwrite_each_other(tmp_path):
    plan = {"name": "1x", "iterations": 90000, "batch_size": 16, "base_lr": 0.04}
    detection_run(tmp_path / "runs", "a")
    detection_run(tmp_path / "runs", "b", schedule=plan)
    files = draw(tmp_path / "runs", tmp_path / "out", "svg")
    names = [file.name for file in files]
    assert len(names) == len(set(names))
    assert {"ap_coco_2017_val.svg", "ap_coco_2017_val_2.svg"} <= set(names)
    assert all(re.fullmatch(r"[\w.-]+", name) for name in names)


def test_plots_of_classes_keep_the_baseline(tmp_path):
    for index in range(9):
        detection_run(tmp_path / "runs", f"r{index}", 40.0 - index, method=f"method {index}")
    detection_run(tmp_path / "runs", "random", 10.0, method="random init")
    found = collect([tmp_path / "runs"], cache=False)
    for options in (TableOptions(), TableOptions(baseline="method 8")):
        tables = build_tables(found, options=options)
        out = tmp_path / str(options.baseline)
        draw_figures(found, tables, out, ("svg",))
        text = next(out.glob("classes_box*.svg")).read_text()
        assert "random init" in text
        assert "method 0" in text
        assert ("method 8" in text) == (options.baseline is not None)
        assert "method 7" not in text


def test_plots_are_means_over_pretrainings_as_tables(tmp_path):
    """Pretraining 0 with three fine-tunings at 30, 1 with one at 40: 35, not 32.5 over runs."""
    for unit, seed, ap in ((0, 0, 30.0), (0, 1, 30.0), (0, 2, 30.0), (1, 0, 40.0)):
        run = detection_run(tmp_path, f"d{unit}{seed}", ap, seed=seed, sha=f"{unit}7" * 32)
        content = json.loads((run.path / "results.json").read_text())
        behind = content["initialization"]["provenance"]["pretrain_run"]
        behind |= {"id": f"p{unit}", "seed": unit, "settings": {"loss.method": "intl"}}
        content["metrics"]["box"]["per_class"] = {"only": ap}
        (run.path / "results.json").write_text(json.dumps(content))
        for iteration in (1, 2):
            run.log(iteration=iteration, total_loss=ap)
    found = collect([tmp_path], cache=False)
    (table,) = build_tables(found)
    (row,) = table.rows
    assert row.metrics["box", "AP"].mean == 35
    drawn = dict(figures._figures(found, [table], figures._styles(found, [table])))
    (bar,) = drawn["classes_box_coco_2017_val_1x"].axes[0].patches
    assert bar.get_width() == 35
    axes = drawn["loss_coco_2017_val_1x"].axes[0]
    assert axes.lines[0].get_ydata().tolist() == [35, 35]
    assert axes.lines[0].get_label().endswith(", n = 2")
    (band_,) = axes.collections
    assert sorted({y for _, y in band_.get_paths()[0].vertices}) == [30, 40]


def test_a_repeated_pretraining_is_drawn_once_as_tables_count_it(tmp_path):
    """Under another name of its configuration, too."""
    for name, accuracy, year in (("first", 30.0, 2024), ("again", 90.0, 2025)):
        run = pretraining_run(
            tmp_path, name, sha=name[0] * 64, knn_accuracy=accuracy, config_name=name
        )
        run.manifest.ended = f"{year}-05-01T12:00:00+00:00"
        run.save()
        for epoch in (1, 2):
            run.log(step=epoch, epoch=float(epoch), knn_accuracy=accuracy)
    found = collect([tmp_path], cache=False)
    (table,) = build_tables(found)
    (row,) = table.rows
    assert (row.n, row.metrics["k-NN", "top-1"].mean) == (1, 90.0)
    assert row.detail == "again, 20 ep, shapes"
    drawn = dict(figures._figures(found, [table], figures._styles(found, [table])))
    (line,) = drawn["pretrain_knn"].axes[0].lines
    assert line.get_ydata().tolist() == [90.0, 90.0]
    assert line.get_label() == row.label


def test_many_classes_and_rows(tmp_path):
    classes = {f"class {index}": 30.0 + index / 10 for index in range(80)}
    for index in range(9):
        metrics = {"box": {"AP": 30.0 + index, "per_class": {**classes, "rare": None}}}
        detection_run(tmp_path / "runs", f"r{index}", method=f"m{index}", metrics=metrics)
    files = {f.stem: f for f in draw(tmp_path / "runs", tmp_path / "out", "svg")}
    text = files["classes_box_coco_2017_val_1x"].read_text()
    assert "the first 6 of 9 rows" in text
    assert "class 79" in text
    assert json.dumps("rare").strip('"') in text
