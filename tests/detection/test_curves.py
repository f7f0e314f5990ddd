from __future__ import annotations

import json

import numpy as np
from PIL import Image

from detection.curves import (
    RECALL,
    _precision_recall,
    curve_entry,
    draw_curves,
    write_curves,
)


def write_metrics(folder, rows):
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))


def losses(iteration):
    return {"iteration": iteration, "total_loss": 2.0, "loss_cls": 1.5, "loss_mask": 0.5}


def test_entries_leave_out_classes_without_objects():
    falling = np.linspace(1, 0, 101)
    entry = curve_entry({"cat": falling, "dog": None, "cow": np.zeros(101)})
    assert entry["recall"] == RECALL
    np.testing.assert_allclose(RECALL, np.linspace(0, 1, 101))
    assert entry["precision"]["dog"] is None
    np.testing.assert_allclose(entry["precision"]["mean"], falling / 2, atol=1e-4)
    assert curve_entry({"dog": None})["precision"] == {"dog": None, "mean": None}


def test_names_that_matplotlib_would_read_otherwise(tmp_path):
    """Mathematics, hidden lines, other scripts; and a class that is called as the mean is."""
    curve = np.linspace(1, 0, 101)
    names = ["$5 bill$", "_hidden", "猫", "mean", "50 % \\alpha_1"]
    entry = curve_entry({name: curve / (i + 1) for i, name in enumerate(names)})
    assert len(entry["precision"]) == 6
    assert entry["precision"]["mean (class)"] == [round(v / 4, 4) for v in curve]
    figure = _precision_recall({"box": {"0.50": entry}})
    legend = figure.axes[0].get_legend()
    shown = [text.get_text().strip("\u200b").replace("\\$", "$") for text in legend.get_texts()]
    assert shown == ["$5 bill$", "_hidden", "猫", "mean (class)", "50 % \\alpha_1"]
    figure.savefig(tmp_path / "drawn.png")


def test_what_a_run_holds_is_drawn(tmp_path):
    assert draw_curves(tmp_path) == []
    rng = np.random.default_rng(0)
    for classes in (3, 80):  # named, and too many to be named
        entry = curve_entry(
            {
                f"class {i}": None if i == 1 else np.sort(rng.random(101))[::-1]
                for i in range(classes)
            }
        )
        write_curves(tmp_path, {task: {"0.50": entry, "0.75": entry} for task in ("box", "mask")})
        assert draw_curves(tmp_path) == ["precision_recall.png"]
        with Image.open(tmp_path / "precision_recall.png") as image:
            assert image.width > 1000
    write_curves(tmp_path, {"voc": {"0.50": curve_entry({"a": None})}})  # nothing to see
    write_metrics(tmp_path, [losses(20), losses(40)])
    assert draw_curves(tmp_path) == ["precision_recall.png", "training.png"]
    with Image.open(tmp_path / "training.png") as image:
        narrow = image.width
    # Evaluations beside them; a figure may be missing, and a resumed run repeats iterations.
    figures = {"AP": 3.0, "AP50": 5.0, "AP75": None}
    evaluation = {"iteration": 40, "evaluation": {"box": figures}}
    write_metrics(tmp_path, [losses(20), losses(40), losses(20), evaluation, losses(40)])
    draw_curves(tmp_path)
    with Image.open(tmp_path / "training.png") as image:
        assert image.width > narrow + 200
    assert all((tmp_path / name).stat().st_size < 400_000 for name in draw_curves(tmp_path))
