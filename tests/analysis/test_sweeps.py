"""Sweeps: what is run, what comes of it; dynamics of runs; figures that are sweeps."""

from __future__ import annotations

import itertools
import json
import math
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from intl_transfer.analysis.reading import each_once, read_run
from intl_transfer.analysis.sweep_figures import spectra
from intl_transfer.analysis.sweeps import (
    FIGURES,
    Plot,
    Sweep,
    SweptEvaluation,
    draw,
    override,
    rows_of,
    run_name,
    settings_of,
    summary,
)
from intl_transfer.cli import main
from intl_transfer.errors import UserError
from intl_transfer.runs.config import load_config
from intl_transfer.runs.records import Input, PretrainRun, Provenance
from intl_transfer.runs.settings import flatten
from pretrain.config import PretrainConfig
from slurm.sweep import ROOT, SweepPlan, read
from tests.results.synthetic import evaluation_run

_P, _T = "loss.options.p", "loss.iterations"
_SMALL = {"object_size": 16, "objects_train": 8}


def plan(tmp_path, sweep, **options):
    options = {"cluster": "local", "gpus_per_node": 0, **options}
    return SweepPlan(sweep, "mine", tmp_path, ROOT, {}, options, 0)


def swept(**more):
    return Sweep(pretrain="shapes_r18", **more)


def test_a_grid_is_every_combination_and_points_go_with_each_cell():
    sweep = swept(
        grid={"optim.base_lr": [0.1, 0.3], "loss.axis": ["batch"]},
        points=[{"loss.iterations": 1}, {"loss.iterations": 9, "loss.axis": "channel"}],
    )
    found = {tuple(sorted(settings.items())) for settings in settings_of(sweep)}
    assert found == {
        (("loss.axis", axis), ("loss.iterations", t), ("optim.base_lr", lr))
        for lr in (0.1, 0.3)
        for axis, t in (("batch", 1), ("channel", 9))
    }


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({}, "nothing is swept"),
        ({"grid": {"loss.iterations": []}}, "grid.loss.iterations is empty"),
        ({"grid": {"loss.iterations": [4, 4.0]}}, "comes up twice"),
        ({"grid": {"loss.iteration": [4]}}, "Did you mean 'loss.iterations'"),
        ({"grid": {"loss.iterations": [0]}}, "loss.iterations is 0; expected at least 1"),
        ({"grid": {"data.workers": [0, 1]}}, "no setting that affects results differs"),
        ({"grid": {"seed": [1, 2]}}, "same experiment"),
    ],
)
def test_what_cannot_be_swept_is_refused_before_anything_runs(tmp_path, more, said):
    with pytest.raises(UserError, match=said):
        plan(tmp_path, swept(**more)).jobs()


def test_every_run_is_the_configuration_it_says(tmp_path):
    values = [None, 0, 0.05, 1e-5]
    sweep = swept(grid={"loss.trace_weight": values}, seeds=[0, 3])
    sweep.points = [{"views": [{"size": 32}, {"size": 32, "blur": 0.5}], "loss.axis": "batch"}]
    jobs = plan(tmp_path, sweep).jobs()
    runs = [job for job in jobs if job.stage == "pretrain"]
    assert len(runs) == len({job.target for job in runs}) == 8
    for job, value in zip(runs, np.repeat(np.array(values, object), 2), strict=True):
        words = [word for word in job.command if "=" in word]
        config = load_config(PretrainConfig, "shapes_r18", words, ROOT / "configs/pretrain")
        assert config.loss.trace_weight == value
        assert config.views[1].blur == 0.5
        assert job.settings["loss.axis"] == "batch"
    assert {job.settings["seed"] for job in runs} == {0, 3}
    report, figure = jobs[-2:]
    assert (report.after, figure.after) == ("any", "any")
    assert figure.parents == [job.key for job in runs]
    assert "figure sweep" in " ".join(figure.command)


def test_evaluations_wait_for_their_runs_and_see_the_made_images(tmp_path):
    sweep = read("sweep_axis", ["seeds=[1]"])
    jobs = plan(tmp_path, sweep).jobs()
    evaluated = [job for job in jobs if job.stage == "evaluation"]
    assert len(evaluated) == 8
    for job in evaluated:
        (parent,) = job.parents
        weights = job.command[job.command.index("--weights") + 1]
        assert weights == next(n.target for n in jobs if n.key == parent)
        assert f"data.test={tmp_path}/datasets/shapes/classification/val" in job.command


SWEEPS = [
    path.stem
    for path in sorted((ROOT / "configs" / "analysis").glob("*.yaml"))
    if re.search(r"^(grid:|points:$)", path.read_text(), re.M)
]


@pytest.mark.parametrize("name", SWEEPS)
def test_every_sweep_in_the_repository_can_be_planned(tmp_path, name):
    assert plan(tmp_path, read(name, [])).jobs()
    # On a cluster, as written: its GPUs divide every batch.
    assert SweepPlan(read(name, []), name, tmp_path, ROOT, {}, {}, 8).jobs()


def test_names_are_short_and_safe():
    assert run_name({_P: 0.5, "loss.stable": False}) == "p0.5_stable-false"
    assert run_name({"views": [{"size": 32}] * 20, "a": "../b c"}).isascii()
    assert len(run_name({"views": [{"size": n} for n in range(40)]})) <= 80
    assert override("data.name", "a b") == "data.name=a b"
    assert override("loss.trace_weight", None) == "loss.trace_weight=null"


def fake_run(folder, name, p, seed, status="finished", conditions=(-2.0,)):
    """A run directory as the stage writes it."""
    run = folder / "pretrain" / name
    run.mkdir(parents=True)
    config = {"loss": {"method": "power", "options": {"p": p}}, "optim": {"batch_size": 8}}
    manifest = {"schema": 1, "id": name, "stage": "pretrain", "name": name, "status": status}
    manifest |= {"config": config, "seed": seed, "inputs": [], "sessions": []}
    (run / "manifest.json").write_text(json.dumps(manifest))
    lines = []
    for step, condition in enumerate(conditions, 1):
        ranks, values = [1, 2, 4], [1.0, 0.5, 10.0 ** max(condition, -300)]
        line = {"step": step, "loss": 1 / step, "spectrum/condition": condition}
        line |= {"spectrum/ranks": ranks, "spectrum/eigenvalues": values}
        line |= {"spectrum/output_ranks": ranks, "spectrum/output_eigenvalues": values}
        line |= {"spectrum/effective_rank": 3.0, "spectrum/alignment": 0.1}
        lines.append(json.dumps({**line, "spectrum/trace_loss": 7.5}))
    lines = [text.replace("-Infinity", '"-inf"') for text in lines]
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    return run


def test_the_summary_is_mean_and_deviation_over_seeds(tmp_path):
    found = {(0.0, 0): -3.0, (0.0, 1): -5.0, (0.5, 0): -1.0, (0.5, 1): -1.5, (0.5, 2): -math.inf}
    for (p, seed), condition in found.items():
        fake_run(tmp_path, f"p{p}_{seed}", p, seed, conditions=(0.0, condition))
    sweep = swept(grid={_P: [0, 0.5]}, seeds=[0, 1, 2])
    rows, runs = rows_of(sweep, [tmp_path])
    assert len(rows) == len(runs) == 5
    assert sorted(row["condition"] for row in rows) == sorted(found.values())
    lines = {line[_P]: line for line in summary(sweep, rows)}
    assert lines[0]["condition"] == -4
    assert lines[0]["condition_std"] == pytest.approx(math.sqrt(2))
    line = lines[0.5]
    assert (line["n"], line["condition_n"], line["condition"]) == (3, 2, -1.25)  # what is finite


def test_a_sweep_is_drawn_from_its_folder(tmp_path):
    for p in (0.0, 0.5):
        fake_run(tmp_path, f"p{p}", p, 0, status="failed" if p else "finished")
    (tmp_path / "sweep.yaml").write_text(f"pretrain: shapes_r18\ngrid: {{{_P}: [0, 0.5]}}\n")
    out = tmp_path / "out"
    assert main(["figure", "sweep", str(tmp_path), "--out", str(out)]) == 0
    record = json.loads((out / "sweep.json").read_text())
    assert record["summary"] == {"runs": 2, "finished": 1}
    assert list(pd.read_csv(out / "sweep.csv")["condition"]) == [-2.0, -2.0]
    assert (out / "sweep.svg").stat().st_size > 5000


def test_runs_that_did_not_end_are_in_no_mean(tmp_path, capsys):
    """Runs of the records here: two ended, of the third one line is kept, as where it is killed."""
    corpus, made = ROOT / "docs/results/corpus/axis", tmp_path / "axis"
    for seed in (0, 1, 2):
        name = f"pretrain/iterations4_axis-channel_seed{seed}"
        shutil.copytree(corpus / name, made / name)
    config = swept(grid={"loss.iterations": [4]})
    before, _ = rows_of(config, [made])
    assert capsys.readouterr().err == ""
    manifest = json.loads((made / name / "manifest.json").read_text())
    (made / name / "results.json").unlink(missing_ok=True)
    first = (made / name / "metrics.jsonl").read_text().splitlines()[0]
    (made / name / "metrics.jsonl").write_text(first + "\n")
    expected = [row["effective_rank"] for row in before if row["seed"] != 2]
    for status, error, word in (
        ("interrupted", "SIGTERM", "interrupted"),
        ("running", None, "running"),
        ("failed", "UserError: no space left on device", "error"),
    ):
        manifest |= {"status": status, "error": error}
        (made / name / "manifest.json").write_text(json.dumps(manifest))
        rows, ended = rows_of(config, [made])
        assert len(rows) == 3
        assert len(ended) == 2
        (line,) = summary(config, rows)
        assert (line["n"], line["finished"]) == (2, 2)
        assert line["effective_rank"] == pytest.approx(np.mean(expected))
        assert line["effective_rank_std"] == pytest.approx(np.std(expected, ddof=1))
        assert f"did not end: {made / name} ({word})" in capsys.readouterr().err
    for seed in (0, 1):
        shutil.rmtree(made / f"pretrain/iterations4_axis-channel_seed{seed}")
    with pytest.raises(UserError, match=r"has ended yet: .*seed2 \(error\)"):
        rows_of(config, [made])


def test_runs_that_diverged_are_in_the_means(tmp_path, capsys):
    """Two of these three ended by NaN: they have spectra, and no accuracy."""
    corpus, made = ROOT / "docs/results/corpus/iterations", tmp_path / "iterations"
    for seed in (0, 1, 2):
        name = f"pretrain/iterations13_trace_weight0_stable-false_seed{seed}"
        shutil.copytree(corpus / name, made / name)
    rows, ended = rows_of(config := swept(grid={"loss.iterations": [13]}), [made])
    assert [row["status"] for row in rows] == ["finished", "failed", "failed"]
    assert (len(ended), capsys.readouterr().err) == (3, "")
    (line,) = summary(config, rows)
    assert (line["n"], line["finished"], line["knn_n"]) == (3, 1, 1)
    assert "effective_rank_n" not in line


def test_keys_that_move_together_are_one_line_at_labeled_places():
    widths = (128, 256, 512)
    points = [{"model.embedding": w, "model.projector_hidden": w} for w in widths]
    sweep = swept(points=points, plot=Plot(x="model.embedding", figures=["top1"], log=True))
    rows = [
        {**dict.fromkeys(FIGURES, math.nan), **point, "seed": seed, "status": "finished"}
        | {"top1": 50.0 + seed}
        for point in points
        for seed in (0, 2)
    ]
    axis = draw(sweep, rows).axes[0]
    (line,) = axis.containers
    assert line[0].get_xydata().tolist() == [[width, 51.0] for width in widths]
    assert [text.get_text() for text in axis.get_xticklabels()] == ["128", "256", "512"]


def test_copies_and_repeats_of_a_run_are_no_seeds(tmp_path, capsys):
    times = {"one": "2024-05-01T13:00:00+05:00", "again": "2024-05-01T12:00:00+00:00"}
    for (name, ended), condition in zip(times.items(), (-1.0, -3.0), strict=True):
        run = fake_run(tmp_path, name, 0.5, 0, conditions=(condition,))
        manifest = json.loads((run / "manifest.json").read_text())
        (run / "manifest.json").write_text(json.dumps({**manifest, "ended": ended}))
    shutil.copytree(tmp_path / "pretrain" / "one", tmp_path / "copies" / "one")
    fake_run(tmp_path, "other_seed", 0.5, 1, conditions=(-2.0,))
    sweep = swept(grid={_P: [0.5]})
    rows, _ = rows_of(sweep, [tmp_path])
    (line,) = summary(sweep, rows)
    assert (line["n"], line["condition"]) == (2, -2.5)
    assert line["condition_std"] == pytest.approx(math.sqrt(0.5))
    assert capsys.readouterr().err.count("is a copy or a repeat of") == 2


def test_there_is_no_mean_of_two_experiments(tmp_path):
    for name, epochs in (("short", 100), ("long", 800)):
        run = fake_run(tmp_path, name, 0.5, 0)
        manifest = json.loads((run / "manifest.json").read_text())
        manifest["config"]["optim"]["epochs"] = epochs
        (run / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"of 2 experiments.*epochs 800.*epochs 100"):
        rows_of(swept(grid={_P: [0.5]}), [tmp_path])


def evaluated(folder, name, behind, top1, kind="linear", lr=0.1):
    """An evaluation as the launcher places it."""
    more = {"origin": {"id": behind, "sha": behind * 8}, "top1": top1, "kind": kind}
    run = evaluation_run(folder / "evaluation" / name, behind, **more)
    run.manifest.inputs = [Input(provenance=Provenance(pretrain_run=PretrainRun(id=behind)))]
    run.manifest.config = {"kind": kind, "optim": {"lr": lr}}
    run.save()


def test_accuracies_of_a_sweep_are_of_one_evaluation(tmp_path):
    for p in (0.0, 0.5):
        fake_run(tmp_path, f"p{p}", p, 0)
        evaluated(tmp_path, "a_other", f"p{p}", 10.0, lr=9.0)
        evaluated(tmp_path, "z_few", f"p{p}", 20.0, kind="semi")
    evaluated(tmp_path, "first", "p0.0", 60.0)
    sweep = swept(grid={_P: [0, 0.5]})
    with pytest.raises(UserError, match=r"evaluations \(linear\) are of 2 experiments"):
        rows_of(sweep, [tmp_path])
    sweep.evaluations = {name: SweptEvaluation(name) for name in ("first", "a_other", "z_few")}
    rows, _ = rows_of(sweep, [tmp_path])
    # Neither another head's accuracy, nor that with few labels, takes the place of a missing one.
    assert [row["top1"] for row in rows] == [60.0, pytest.approx(math.nan, nan_ok=True)]


@pytest.mark.parametrize(
    ("values", "log", "expected"),
    [
        ([None, 2, 4], False, [(0, "2"), (1, "4"), (2, "None")]),
        ([0, 0.01, 0.1], True, [(0, "0"), (1, "0.01"), (2, "0.1")]),
        ([1, 10, 100], True, [(1, "1"), (10, "10"), (100, "100")]),
    ],
)
def test_every_swept_value_has_a_place_of_its_own(values, log, expected):
    sweep = swept(grid={"a.b": values}, plot=Plot(figures=["top1"], log=log))
    none = dict.fromkeys(FIGURES, math.nan)
    rows = [
        {**none, "a.b": value, "seed": 0, "status": "finished", "top1": 50.0 + index}
        for index, value in enumerate(values)
    ]
    axis = draw(sweep, rows).axes[0]
    (line,) = axis.containers
    texts = dict(expected)
    drawn = {texts[place]: top1 - 50 for place, top1 in line[0].get_xydata().tolist()}
    assert drawn == {str(value): index for index, value in enumerate(values)}
    ticks = [(tick.get_position()[0], tick.get_text()) for tick in axis.get_xticklabels()]
    assert ticks == expected
    assert axis.get_xscale() == ("log" if log and values[0] else "linear")


def test_the_dynamics_of_runs_side_by_side(tmp_path, capsys):
    runs = [fake_run(tmp_path, f"p{p}", p, 0, conditions=(-1, -2, -4)) for p in (0.0, 0.5)]
    out = tmp_path / "out"
    assert main(["figure", "dynamics", *map(str, runs), "--out", str(out)]) == 0
    rows = pd.read_csv(out / "dynamics.csv")
    assert list(rows["run"]) == ["p 0"] * 3 + ["p 0.5"] * 3
    assert list(rows["condition"]) == [-1, -2, -4] * 2
    assert json.loads(rows["eigenvalues"][2]) == [1.0, 0.5, 1e-4]
    bare = fake_run(tmp_path, "bare", 1.0, 0, conditions=())
    capsys.readouterr()
    assert main(["figure", "dynamics", str(bare), "--out", str(out)]) == 2
    assert "no run has looked at its spectrum" in capsys.readouterr().err


def test_the_floor_is_drawn_against_runs(tmp_path):
    run = fake_run(tmp_path, "one", 0.0, 0)
    out = tmp_path / "out"
    words = ["figure", "floor", "--quick", str(run), "--out", str(out), "descended=[8]"]
    assert main(words) == 0
    rows = pd.read_csv(out / "floor.csv")
    assert rows[rows["kind"] == "one"]["trace_loss"].tolist() == [7.5]


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.parametrize("name", ["power", "iterations"])
def test_a_figure_that_is_a_sweep_runs_it_and_its_claims_hold(tmp_path, name, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    out, runs = tmp_path / "out", tmp_path / "runs"
    status = main(["figure", name, "--quick", "--out", str(out), f"output_dir={runs}"])
    record = json.loads((out / f"{name}.json").read_text())
    assert status == 0, record["claims"]
    assert len(record["claims"]) == 2
    rows = pd.read_csv(out / f"{name}.csv")
    if name == "power":
        ranks = dict(zip(rows[_P], rows["output_effective_rank"], strict=True))
        assert ranks[0] < 1.5 < 10 < ranks[0.5]
        assert rows["knn"].between(0, 100).all()
    else:
        assert dict(zip(rows["loss.stable"], rows["status"], strict=True)) == {
            True: "finished",
            False: "failed",
        }
    assert (runs / "report").is_dir()  # the table, beside the sweep's own figure
    assert flatten(json.loads((out / f"{name}.json").read_text())["settings"])["seeds"] == [0]


def test_lines_of_one_key_are_parted_by_further_keys():
    """One point a line and place, in place of two joined to a zigzag."""
    grid = {"optim.base_lr": [0.1, 0.2], "loss.axis": ["channel", "batch"], _T: [4, 8]}
    sweep = swept(grid=grid, plot=Plot(x="optim.base_lr", lines="loss.axis", figures=["top1"]))
    keys = list(grid)
    rows = [
        {**dict.fromkeys(FIGURES, math.nan), **dict(zip(keys, values, strict=True))}
        | {"seed": 0, "status": "finished", "top1": 50.0 + values[2]}
        for values in itertools.product(*grid.values())
    ]
    lines = draw(sweep, rows).axes[0].containers
    assert [line[0].get_xydata().tolist() for line in lines] == [
        [[0.1, 50.0 + t], [0.2, 50.0 + t]] for t in (4, 8, 4, 8)
    ]


def test_spectra_of_many_iterations_have_a_color_each():
    looks = [(0, [1, 2], [1.0, 0.5])]
    runs = [
        SimpleNamespace(
            manifest=SimpleNamespace(seed=0), settings={_T: t}, spectra=lambda output: looks
        )
        for t in range(1, 12)
    ]
    lines = spectra(runs).axes[0].lines
    assert len({str(line.get_color()) for line in lines}) == len(runs)


def test_repeats_without_times_all_count(tmp_path, capsys):
    runs = [fake_run(tmp_path, name, 0.5, 0) for name in ("one", "two")]
    assert len(each_once([read_run(path) for path in runs])) == 2
    assert "no times say which is newer; both count" in capsys.readouterr().err
