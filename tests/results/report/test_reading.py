"""What the page takes from run directories: curves, logs, pictures, and nothing from elsewhere."""

from __future__ import annotations

import base64
import io
import json
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from intl_transfer.results import collect
from intl_transfer.results.report.details import FILES, describe
from intl_transfer.results.report.logs import last_lines
from intl_transfer.results.report.page import inline_json
from intl_transfer.results.report.pictures import data_uri, read_predictions
from intl_transfer.results.report.series import read_series, read_spectra
from intl_transfer.results.report.values import as_text, page_key
from intl_transfer.spectral.diagnostics import collapse_alarm, directions
from tests.results.report.study import detection, pretraining, write_lines

JSON = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=12,
)


@given(JSON)
def test_json_survives_its_element_and_cannot_end_it(value):
    text = str(inline_json({"value": value, "also": "</script><!--\u2028&"}))
    assert json.loads(text)["value"] == value
    assert not set("<>&") & set(text)
    assert text.isascii()
    assert "\n" not in text


def test_not_a_number_is_refused_rather_than_written():
    with pytest.raises(ValueError, match="JSON compliant"):
        inline_json({"value": float("nan")})


@given(st.text() | st.none() | st.integers())
def test_page_keys_are_harmless(identity):
    key = page_key(identity)
    assert key
    assert set(key) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")
    assert page_key(identity) == key


def curve(found, name):
    ((x, y),) = [(g["x"], g["y"][name]) for g in found["curves"] if name in g["y"]]
    return x, y


def test_of_many_spectra_first_last_and_some_between_are_kept(tmp_path):
    looked = [
        {"step": step, "spectrum/ranks": [1, 2, 8], "spectrum/eigenvalues": [1.0, 0.5, 1 / step]}
        for step in range(50, 1050, 50)
    ]
    others = [{"step": step, "loss": 1.0} for step in range(1, 1000)]
    damaged = [
        {"step": 1100, "spectrum/ranks": [1, 2], "spectrum/eigenvalues": [1.0]},
        {"step": 1150, "spectrum/ranks": ["1", 0], "spectrum/eigenvalues": [1.0, 0.5]},
        {"step": 1200, "spectrum/ranks": 3, "spectrum/eigenvalues": None},
    ]
    write_lines(tmp_path, [*others, *looked, *damaged])
    found = read_spectra(tmp_path)
    assert [one["step"] for one in found] == [50, 300, 550, 750, 1000]
    assert found[-1] == {"step": 1000, "ranks": [1, 2, 8], "values": [1.0, 0.5, 0.001]}
    assert read_spectra(tmp_path / "none") == []
    write_lines(tmp_path, looked[:1])
    assert [one["step"] for one in read_spectra(tmp_path)] == [50]


def test_curves_are_averaged_within_stretches(tmp_path):
    rng = np.random.default_rng(0)
    loss = np.exp(-np.arange(3000) / 700) + rng.normal(0, 0.1, 3000)
    write_lines(tmp_path, [{"step": i + 1, "loss": float(v)} for i, v in enumerate(loss)])
    x, y = curve(read_series(tmp_path, points=500), "loss")
    assert len(x) == len(y) == 500
    np.testing.assert_allclose(y, loss.reshape(500, 6).mean(1), rtol=1e-4)
    np.testing.assert_allclose(x, np.arange(1, 3001).reshape(500, 6).mean(1), rtol=1e-4)


def test_a_long_file_is_read_in_part_but_evaluations_are_not_lost(tmp_path):
    rows = [{"iteration": i, "total_loss": 1 + 1 / i} for i in range(1, 40_001)]
    for place in (777, 23_457):
        shown = {"box": {"AP": place / 1000}}
        rows.insert(place, {"iteration": place, "evaluation": shown})
    write_lines(tmp_path, rows)
    found = read_series(tmp_path)
    assert found["unit"] == "iteration"
    assert curve(found, "evaluation/box/AP") == ([777, 23_457], [0.777, 23.457])
    x, y = curve(found, "total_loss")
    assert len(x) <= 500
    np.testing.assert_allclose(y[1:], 1 + 1 / np.array(x[1:]), rtol=1e-3)
    assert found["last"]["step"] == 40_000


def test_steps_told_twice_and_damaged_lines(tmp_path):
    write_lines(tmp_path, [{"step": s, "loss": 10.0 + s} for s in (1, 2, 3)])
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "lo\n[1]\nnull\n{"step": true, "loss": 9}\n')
        file.write('{"step": 2, "loss": 20.0}\n{"step": 3, "loss": "nan"}\n{"step": 4, "loss": 4}')
    x, y = curve(read_series(tmp_path), "loss")
    assert x == [1, 2, 3, 4]
    assert y == [11, 20, None, 4]
    assert read_series(tmp_path / "nowhere")["curves"] == []


def test_detectron2s_own_file_has_the_same_curves(tmp_path):
    rows = [{"iteration": i, "total_loss": 3 - i / 100, "eta_seconds": 9.0} for i in (19, 39)]
    figures = {"bbox/AP": 30.5, "bbox/AP-person": 41.0, "segm/AP50": 50.0, "segm/APs": None}
    write_lines(tmp_path, [*rows, {"iteration": 39, **figures}])
    (tmp_path / "metrics.jsonl").rename(tmp_path / "metrics.json")
    assert read_series(tmp_path, name="metrics.json")["curves"] == [
        {"x": [19, 39], "y": {"total_loss": [2.81, 2.61]}},
        {"x": [39], "y": {"evaluation/box/AP": [30.5], "evaluation/mask/AP50": [50]}},
    ]


def test_the_last_lines_as_a_terminal_would_show_them(tmp_path):
    run = tmp_path / "runs" / "intl.v2"
    run.mkdir(parents=True)
    assert last_lines(run) == []
    (run / "log.txt").write_text("\n".join(f"line {i}" for i in range(100_000)) + "\n\n")
    (run.parent / "intl.v2.log").write_bytes(
        b"\x1b[31mred\x1b[0m \x1b]0;title\x07end\n 10%\r 50%\r100%\r\nbad \xff byte\x00\n"
        + b"x" * 900
    )
    os.utime(run / "log.txt", (1, 1))
    beside, own = last_lines(run, lines=4)
    assert beside["file"].endswith("intl.v2.log")
    assert beside["lines"][:3] == ["red end", "100%", "bad \ufffd byte"]
    assert beside["lines"][3] == "x" * 500 + " …"
    assert own["lines"] == [f"line {i}" for i in range(99_996, 100_000)]


def test_of_a_schedulers_logs_the_newest_job_of_this_run(tmp_path):
    run = tmp_path / "seed1"
    run.mkdir()
    for number, (name, job) in enumerate((("seed1", 10), ("seed1", 11), ("seed10", 12))):
        folder = tmp_path / "slurm" / str(job)
        folder.mkdir(parents=True)
        (folder / f"{job}_0_log.out").write_text(f"python --output-dir /far/{name}\njob {job}\n")
        (folder / f"{job}_0_log.err").write_text(f"error of {job}\n")
        for file in folder.iterdir():
            os.utime(file, (number, number))
    lines = {line for found in last_lines(run) for line in found["lines"]}
    assert lines == {"python --output-dir /far/seed1", "job 11", "error of 11"}


def test_the_rank_that_failed_speaks_first(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "log.txt").write_text("iter: 20\n")
    job = tmp_path / "slurm" / "5"
    job.mkdir(parents=True)
    for rank in range(6):
        (job / f"5_{rank}_log.out").write_text("python train.py --output-dir /far/run\n")
        text = "Traceback (most recent call last):\nRuntimeError: here\n" if rank == 3 else "w\n"
        (job / f"5_{rank}_log.err").write_text(text)
        os.utime(job / f"5_{rank}_log.err", (rank, rank))
    found = last_lines(run)
    assert len(found) == 4
    assert found[0]["lines"][-1] == "RuntimeError: here"
    assert found[0]["file"].endswith("5_3_log.err")


def test_a_benchmarks_logs_lie_above_its_runs(tmp_path):
    for name in ("coco/intl_seed1", "voc/intl_seed1"):
        run = tmp_path / "detection" / name
        run.mkdir(parents=True)
        job = tmp_path / "slurm" / name.split("/")[0]
        job.mkdir(parents=True)
        command = f"python train_net.py --output-dir /far/away/detection/{name} --resume\n"
        (job / "0_log.out").write_text(f"{command}last words of {name}\n")
    for name in ("coco/intl_seed1", "voc/intl_seed1"):
        (found,) = last_lines(tmp_path / "detection" / name)
        assert found["lines"][-1] == f"last words of {name}"


def test_pictures_are_scaled_with_what_is_on_them(tmp_path):
    folder = detection(tmp_path, "INTL", 0, 40.0)
    written = json.loads((folder / "predictions.json").read_text())
    Image.new("RGB", (1440, 960)).save(folder / "predictions/000.jpg")
    found = read_predictions(folder, 3)
    assert len(found["images"]) == 3
    assert found["least"] == 0.05
    picture = found["images"][0]
    code = picture["uri"].removeprefix("data:image/jpeg;base64,")
    with Image.open(io.BytesIO(base64.b64decode(code))) as image:
        assert image.size == (picture["width"], picture["height"]) == (360, 240)
    scale = 360 / 1440
    for reported, kept in zip(written["images"][0]["truth"], picture["truth"], strict=True):
        np.testing.assert_allclose(kept["box"], np.array(reported["box"]) * scale, atol=0.051)
        np.testing.assert_allclose(
            kept["polygons"][0], np.array(reported["polygons"][0]) * scale, atol=0.051
        )
    scores = [thing["score"] for thing in picture["predictions"]]
    assert scores == sorted(scores, reverse=True)


def test_no_picture_from_outside_the_run_and_no_broken_one(tmp_path):
    folder = detection(tmp_path, "INTL", 0, 40.0)
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    (folder / "predictions/link.jpg").symlink_to(tmp_path / "secret.png")
    (folder / "predictions/text.jpg").write_text("not a picture")
    content = json.loads((folder / "predictions.json").read_text())
    good = content["images"][0]
    strange = [{"class": 99, "score": 0.9, "box": [0, 0, 5, 5], "polygons": [[1, 2], "x"]}]
    broken = [{"class": 0, "score": 0.9, "box": ["a", 0, 5, 5]}, 7, {"class": 0}]
    paths = ("../../secret.png", str(tmp_path / "secret.png"), "predictions/link.jpg")
    images = [{**good, "file": name} for name in (*paths, "predictions/text.jpg", "nowhere.jpg")]
    images += [7, {**good, "predictions": strange + broken, "truth": None}]
    (folder / "predictions.json").write_text(json.dumps({**content, "images": images}))
    (picture,) = read_predictions(folder, 12)["images"]
    assert picture["truth"] == []
    assert picture["predictions"] == [
        {"class": None, "score": 0.9, "box": [0, 0, 3.8, 3.8], "polygons": []}
    ]
    (folder / "predictions.json").write_text("{")
    assert read_predictions(folder, 12) == {}
    Image.new("RGB", (64, 32)).save(folder / "predictions.png")
    assert read_predictions(folder, 12)["sheet"].startswith("data:image/jpeg")
    assert data_uri(folder, 100) is None


@pytest.mark.parametrize(
    ("axis", "rows", "width"),
    [("channel", 256, 2048), ("channel", 4096, 129), ("batch", 256, 512), ("channel", 16, 2048)],
)
def test_collapse_bounds_are_the_spectral_cores(tmp_path, axis, rows, width):
    folder = pretraining(tmp_path, "INTL")
    manifest = json.loads((folder / "manifest.json").read_text())
    config = manifest["config"]
    config["loss"] |= {"axis": axis, "iterations": 5}
    config["optim"]["batch_size"], config["model"]["embedding"] = rows, width
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (entry,) = collect([tmp_path], cache=False).entries
    bounds = describe(entry, 100, 0)["collapse"]
    size, attainable = rows if axis == "channel" else width, directions(rows, width, axis)
    alarm = collapse_alarm(1.0, size, 5, attainable=attainable)
    assert bounds["floor"] == pytest.approx(alarm.floor, rel=1e-5)
    assert bounds["alarm"] == pytest.approx(alarm.bound, rel=1e-5)
    assert bounds["rank"] == alarm.rank


def test_a_hundred_classes_do_not_swell_the_page(tmp_path):
    folder = detection(tmp_path, "INTL", 0, 40.0, pictures=False)
    recall = np.linspace(0, 1, 101).tolist()
    precision = {f"class {i}": recall[::-1] for i in range(80)} | {"mean": recall[::-1]}
    curves = {"box": {"0.50": {"recall": recall, "precision": precision}, "0.75": "x"}, "mask": []}
    (folder / "curves.json").write_text(json.dumps(curves))
    (entry,) = collect([tmp_path], cache=False).entries
    kept = describe(entry, 100, 0)["precision"]
    assert list(kept) == ["box"]
    found = kept["box"]["0.50"]
    assert found["recall"][0] == 0
    assert found["recall"][-1] == 1
    assert found["precision"]["mean"] == found["recall"][::-1]
    assert len(json.dumps(kept)) < 30_000


@pytest.mark.parametrize("recall", [[], [0, None, 1], [0, "0.5", 1], [0, True, 1], "0", None])
def test_a_curve_without_recall_has_no_place(tmp_path, recall):
    folder = detection(tmp_path, "INTL", 0, 40.0, pictures=False)
    right = {"recall": [0, 0.5, 1], "precision": {"mean": [1, None, 0]}}
    wrong = {"recall": recall, "precision": {"mean": recall or []}}
    (folder / "curves.json").write_text(json.dumps({"box": {"0.50": right, "0.75": wrong}}))
    (entry,) = collect([tmp_path], cache=False).entries
    assert describe(entry, 100, 0)["precision"] == {"box": {"0.50": right}}


def test_what_has_not_changed_is_not_read_again(tmp_path):
    folder = detection(tmp_path, "INTL", 0, 40.0, pictures=False)
    cache = {}

    def read():
        (entry,) = collect([tmp_path], cache=False).entries
        return describe(entry, 100, 1, cache)

    first = read()
    assert read() is first
    for name in FILES:
        if (folder / name).exists():
            os.utime(folder / name, (7, 7))
            again = read()
            assert again is not first, name
            assert again == first
            first = again


def test_settings_by_dotted_name():
    value = {"a": {"b": 1, "c": [1, "x"]}, "d": [{"e": None}, {"e": True}], "f": {}, "g": "1"}
    assert as_text(value) == {
        "a.b": "1",
        "a.c": '[1, "x"]',
        "d[0].e": "null",
        "d[1].e": "true",
        "f": "{}",
        "g": "1",
    }
    assert as_text({}) == {}
