from __future__ import annotations

import json

import pytest

from intl_transfer.results import TableOptions, build_tables, collect, render
from tests.results.synthetic import evaluation_run, pretraining_run, recipe_config, write_results


def tables_of(root, published=False):
    return build_tables(collect([root]), published, TableOptions(kinds=("classification",)))


def imagenet(root, epochs, seed, top1, **changes):
    name = f"imagenet_r50_ep{epochs}_multicrop_ema"
    origin = {"sha": f"{epochs}{seed}", "epochs": epochs, "config_name": name}
    origin["settings"] = {"optim.epochs": epochs, "optim.base_lr": 50 / epochs}
    changes = {"dataset": "imagenet", "backbone": "resnet50", **changes}
    run = f"{epochs}_{seed}_{changes.get('kind', 'linear')}"
    evaluation_run(
        root, run, seed=seed, top1=top1, origin={**origin, "dataset": "imagenet"}, **changes
    )


def test_imagenet_linear_has_a_column_for_each_number_of_epochs(tmp_path):
    for seed in (0, 1):
        imagenet(tmp_path, 100, seed, 73 + seed)
        imagenet(tmp_path, 200, seed, 75 + seed)
    (table,) = tables_of(tmp_path)
    assert table.columns() == [("linear", "100 ep"), ("linear", "200 ep")]
    (row,) = table.rows
    assert row.detail == "imagenet_r50_multicrop_ema, imagenet"
    assert row.metrics["linear", "100 ep"].mean == 73.5
    assert row.metrics["linear", "200 ep"].n == 2
    table = tables_of(tmp_path, published=True)[0]
    assert [m for _, m in table.columns()] == [f"{e} ep" for e in (100, 200, 400, 800, 1000)]
    byol = next(row for row in table.rows if row.method == "BYOL")
    assert byol.published
    assert byol.metrics["linear", "800 ep"].mean == 74.3
    assert byol.notes == (
        "published: SimSiam (arXiv 2011.10566) Table 4",
        "not stated here: batch size of pretraining, protocol of the evaluation, number of runs",
    )
    assert "batch 256" in {row.detail for row in table.rows if row.published}


def test_names_of_one_configuration_are_one_row(tmp_path):
    settings = {"optim.epochs": 100, "loss.method": "intl"}
    for seed, name in enumerate(("a", "b")):
        origin = {"sha": name * 64, "id": name, "config_name": name, "seed": seed}
        evaluation_run(
            tmp_path, name, seed=seed, dataset="imagenet", backbone="resnet50", top1=70 + seed,
            origin={**origin, "epochs": 100, "dataset": "imagenet", "settings": settings},
        )  # fmt: skip
    (table,) = tables_of(tmp_path)
    (row,) = table.rows
    assert (row.detail, row.metrics["linear", "100 ep"].n) == ("a / b, imagenet", 2)


def test_notes_are_of_the_data_sets_that_they_name(tmp_path):
    """And shown with their columns."""
    for seed in (0, 1):
        evaluation_run(tmp_path, f"a{seed}", seed=seed)
    evaluation_run(tmp_path, "b", dataset="cifar100")
    once = "the pretraining run was not among the folders read"
    repeated = "fine-tunings of one pretraining"
    for columns, expected in (
        ((), (once, f"cifar10: {repeated}")),
        (("cifar10",), (once, repeated)),
        (("cifar100",), (once,)),
    ):
        (table,) = build_tables(collect([tmp_path]), options=TableOptions(columns=columns))
        (row,) = table.rows
        assert all(note.startswith(text) for note, text in zip(row.notes, expected, strict=True))


def test_protocols_of_evaluation_are_not_mixed(tmp_path):
    imagenet(tmp_path, 100, 0, 73.0)
    imagenet(tmp_path, 100, 1, 71.0, protocol={"epochs": 90}, epoch=90)
    assert len(tables_of(tmp_path)) == 2


def test_fifty_neighbors_are_not_five(tmp_path):
    """Their column is that of 5-NN in the literature."""
    evaluation_run(tmp_path, "k50", kind="knn", protocol={"k": 50}, top1=70.0)
    (table,) = tables_of(tmp_path)
    assert "5-NN" not in {metric for _, metric in table.columns()}
    assert "k = 50" in table.title
    evaluation_run(tmp_path, "k5", kind="knn", protocol={"k": 5}, top1=80.0)
    small, other = sorted(tables_of(tmp_path), key=lambda table: "k = 50" in table.title)
    assert small.rows[0].metrics["cifar10", "5-NN"].values == (80.0,)
    assert other.rows[0].metrics["k-NN", "top-1"].values == (70.0,)


def test_few_labels(tmp_path):
    for percent, top1 in ((1, 50.0), (10, 65.0)):
        protocol = {"epochs": 20, "labels_percent": percent}
        evaluation_run(
            tmp_path, f"{percent}", kind="semi", dataset="imagenet", backbone="resnet50",
            top1=top1, protocol=protocol,
        )  # fmt: skip
    (table,) = tables_of(tmp_path)
    assert table.tasks == ("1 % labels", "10 % labels")
    assert table.rows[0].metrics["1 % labels", "top-1"].mean == 50.0
    assert table.rows[0].metrics["10 % labels", "top-5"].mean == 73.0
    assert "fine-tuned on few labels (epochs 20)" in table.title


def test_few_labels_share_a_table_only_where_both_shares_were_trained_alike(tmp_path):
    for percent, size, momentum in ((1, 224, 0.9), (10, 128, 0.9), (20, 224, 0.9)):
        evaluation_run(
            tmp_path, f"{percent}", kind="semi", top1=50.0,
            protocol={"epochs": 20, "labels_percent": percent},
            settings={
                "data.size": size, "data.labels_percent": percent, "optim.momentum": momentum,
                "dataset.train.images": 100 * percent,
            },
        )  # fmt: skip
    tables = {table.tasks: table.title for table in tables_of(tmp_path)}
    assert tables == {
        ("1 % labels", "20 % labels"): (
            "cifar10, resnet18: fine-tuned on few labels (epochs 20, size 224)"
        ),
        ("10 % labels",): "cifar10, resnet18: fine-tuned on few labels (epochs 20, size 128)",
    }


@pytest.mark.parametrize(
    ("evaluated", "mean", "notes"),
    [
        ((), 58.0, ["k-NN as measured at the end of pretraining"]),
        (
            (1,),
            81.0,
            [
                "left out of the mean: 2 further pretrainings with k-NN as measured at the end of "
                "pretraining only"
            ],
        ),
        ((0, 1, 2), 81.0, []),
    ],
)
def test_what_was_measured_on_the_way_is_said_only_where_it_counts(
    tmp_path, evaluated, mean, notes
):
    for seed in (0, 1, 2):
        run = pretraining_run(
            tmp_path, f"p{seed}", f"{seed}" * 64, seed=seed, knn_accuracy=57.0 + seed
        )
        if seed in evaluated:
            evaluation_run(
                tmp_path, f"e{seed}", kind="knn", dataset="shapes", top1=80.0 + seed,
                protocol={"k": 5}, origin={"sha": f"{seed}" * 64, "id": run.manifest.id},
            )  # fmt: skip
    (table,) = tables_of(tmp_path)
    (row,) = table.rows
    assert row.metrics["k-NN", "top-1"].mean == mean
    assert [note for note in row.notes if "k-NN" in note] == notes
    assert {run.manifest.stage for run in row.runs} == {"evaluation" if evaluated else "pretrain"}


def test_neighbors_from_the_end_of_pretraining(tmp_path):
    for seed in (0, 1, 2):
        pretraining_run(tmp_path, f"p{seed}", f"{seed}" * 64, seed=seed, knn_accuracy=57.0 + seed)
    pretraining_run(tmp_path, "without", "9" * 64, seed=3)
    (table,) = tables_of(tmp_path)
    assert table.title == "shapes, resnet18: k-NN (k = 5)"
    (row,) = table.rows
    assert row.metrics["k-NN", "top-1"].mean == 58.0
    assert row.metrics["k-NN", "top-1"].n == 3
    assert row.notes == ("k-NN as measured at the end of pretraining",)
    assert "58.0 ± 1.0" in render([table], "md")


def test_other_neighbors_are_another_table(tmp_path):
    pretraining_run(tmp_path, "p0", "0" * 64, knn_accuracy=57.0)
    for index, knn in enumerate(({"k": 20}, {"k": 5, "train": "/data/other"})):
        run = pretraining_run(tmp_path, f"q{index}", f"{index + 1}" * 64, knn_accuracy=60.0)
        run.manifest["config"] = {"knn": knn}
        run.save()
    titles = {table.title for table in tables_of(tmp_path)}
    assert titles == {
        f"shapes, resnet18: k-NN (k = {text})" for text in ("5", "20", "5, neighbors from other")
    }


def taking_published(root):
    """The titles of measured tables that have published rows, and of those that have none."""
    tables = [t for t in tables_of(root, True) if any(not row.published for row in t.rows)]
    return [
        [t.title for t in tables if any(row.published for row in t.rows) == with_published]
        for with_published in (True, False)
    ]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({}, ""),
        ({"optim__lr": 0.4}, ""),  # of models pretrained with multi-crop
        ({"optim__base_batch_size": None}, ""),  # at a batch of 256, the same rate
        ({"data__crop_pct": 1.0}, "crop pct 1"),
        ({"data__scale_min": 0.9}, "scale min 0.9"),
        ({"data__interpolation": "bicubic"}, "interpolation bicubic"),
        ({"optim__momentum": 0.0}, "momentum 0"),
        ({"optim__milestones": [1]}, "milestones [1]"),
        ({"optim__head_std": 1.0}, "head std 1"),
        ({"data__subset": "a.txt"}, "subset a.txt"),
    ],
)
def test_published_rows_stand_beside_their_own_linear_evaluation_alone(tmp_path, changes, named):
    """What contradicts it is named by the title, although no other run differs."""
    config = recipe_config("imagenet_linear", **changes)
    protocol = {"epochs": 100, "batch_size": 256, "lr": config["optim"]["lr"]}
    imagenet(tmp_path, 100, 0, 73.0, protocol=protocol, config=config)
    taking, others = taking_published(tmp_path)
    assert (len(taking), len(others)) == ((0, 1) if named else (1, 0))
    assert all(named in title for title in others)


def test_published_rows_stand_beside_their_own_evaluation_of_small_sets_alone(tmp_path):
    """Of one's own kind and of neighbors, each contradiction in the words of its column."""
    linear = {"epochs": 500, "batch_size": 1000, "lr": 0.01, "optimizer": "adam"}
    config = recipe_config("cifar10_linear")
    evaluation_run(tmp_path, "a", config=config, protocol=linear, epoch=500)
    evaluation_run(tmp_path, "k", kind="knn", config=recipe_config("cifar10_knn"))
    taking, others = taking_published(tmp_path)
    assert (len(taking), len(others)) == (1, 0)
    other = recipe_config("cifar100_knn", data__size=64)
    evaluation_run(tmp_path, "l", kind="knn", dataset="cifar100", config=other)
    taking, others = taking_published(tmp_path)
    assert taking == []
    assert "cifar100 5-NN: k = 5, size 64" in others[0]
    titles = [table.title for table in tables_of(tmp_path, True)]
    assert sum(title.endswith("5-NN, linear top-5, published only") for title in titles) == 1


def test_small_data_sets_are_one_row_a_method(tmp_path):
    for dataset, top1 in (("cifar10", 92.0), ("cifar100", 70.0)):
        name = f"{dataset}_r18_ep1000"
        origin = {"config_name": name, "epochs": 1000, "dataset": dataset, "sha": dataset}
        protocol = {"protocol": {"epochs": 500}, "epoch": 500}
        evaluation_run(
            tmp_path, f"l{dataset}", dataset=dataset, top1=top1, origin=origin, **protocol
        )
        more = {"dataset": dataset, "epochs": 1000, "knn_accuracy": top1 - 3}
        more |= {"knn": {"crop_pct": 1.0}}
        pretraining_run(tmp_path, f"p{dataset}", dataset, config_name=name, **more)
    (table,) = tables_of(tmp_path)
    assert table.columns() == [
        (dataset, metric)
        for dataset in ("cifar10", "cifar100")
        for metric in ("top-1", "5-NN", "top-5")
    ]
    (row,) = table.rows
    assert [row.metrics[c].mean for c in table.columns()] == [92.0, 89.0, 100.0, 70.0, 67.0, 78.0]
    assert row.detail == (
        "cifar10_r18_ep1000, 1000 ep, cifar10; cifar100_r18_ep1000, 1000 ep, cifar100"
    )
    tables = tables_of(tmp_path, published=True)
    table = next(t for t in tables if t.rows[0].method == row.method and "small" in t.title.lower())
    assert not any("online" in note for r in table.rows for note in r.notes)
    online = next(t for t in tables if "online linear head" in t.title)
    assert all(r.published and "online linear head" in r.notes for r in online.rows)
    lightly = next(t for t in tables if "benchmark of lightly" in t.title)
    dino = next(r for r in lightly.rows if r.method == "DINO")
    assert dino.detail == "100 ep, batch 128"
    assert dino.metrics["k-NN (InstDisc)", "top-1"].mean == 49.9
    assert "settings not tuned" in dino.notes
    assert table.tasks == ("cifar10", "cifar100", "imagenet100")
    cw_rgp = next(row for row in table.rows if row.method == "CW-RGP")
    assert cw_rgp.metrics["cifar10", "5-NN"].mean == 89.54
    assert ("cifar10", "top-5") not in cw_rgp.metrics  # null in the file: blank, never zero


def test_two_pretrainings_on_one_small_set_are_two_rows(tmp_path):
    for epochs, top1 in ((200, 88.0), (1000, 92.0)):
        origin = {"epochs": epochs, "sha": str(epochs), "config_name": f"c{epochs}"}
        evaluation_run(tmp_path, f"e{epochs}", top1=top1, origin=origin)
    (table,) = tables_of(tmp_path)
    assert [row.detail for row in table.rows] == ["c1000, 1000 ep, shapes", "c200, 200 ep, shapes"]


def test_an_evaluation_counts_before_what_pretraining_measured(tmp_path):
    pretraining_run(tmp_path, "p", "7" * 64, dataset="cifar10", knn_accuracy=80.0)
    origin = {"config_name": "shapes_r18", "epochs": 20, "dataset": "cifar10", "sha": "7" * 64}
    evaluation_run(tmp_path, "e", kind="knn", top1=81.0, origin=origin)
    (row,) = tables_of(tmp_path)[0].rows
    assert row.metrics["cifar10", "5-NN"].values == (81.0,)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"epoch": 50}, "evaluated at epoch 50 of 100"),
        ({"kind": "linaer"}, "kind is 'linaer', expected one of linear, knn, semi"),
        ({"metrics": {"top1": 170.0}}, "top1 is 170.0; expected a percentage"),
        ({"metrics": {}}, "has no metrics"),
        ({"protocol": None}, "protocol: expected an object, found null"),
        ({"kind": "semi"}, "labels_percent is None; expected a percentage"),
        ({"architecture": {}}, "architecture.backbone: it is missing"),
    ],
)
def test_damaged_evaluations_are_named(tmp_path, changes, expected):
    run = evaluation_run(tmp_path, "run")
    file = run.path / "results.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    found = collect([tmp_path])
    assert not found.evaluations
    assert expected in found.problems[0]


def test_damaged_neighbors_are_named(tmp_path):
    run = pretraining_run(tmp_path, "p", knn_accuracy=57.0)
    write_results(run.path, knn_accuracy=570.0)
    assert "knn_accuracy: expected at most 100, found 570" in collect([tmp_path]).problems[0]


@pytest.mark.parametrize(("dataset", "backbone"), [("shapes", "resnet18"), ("cifar10", "resnet18")])
def test_rows_are_in_the_order_of_what_is_marked(tmp_path, dataset, backbone):
    """Top-5 is above every top-1, so the highest of all metrics is not what rows are ranked by."""
    rows = [("INTL", 27.0, 81.0), ("SimCLR", 29.0, 78.0), ("VICReg", 23.0, 79.0)]
    for method, top1, top5 in rows:
        evaluation_run(
            tmp_path, method, method=method, dataset=dataset, backbone=backbone,
            metrics={"top1": top1, "top5": top5}, origin={"sha": method},
        )  # fmt: skip
    (table,) = tables_of(tmp_path)
    assert [row.method for row in table.rows] == ["SimCLR", "INTL", "VICReg"]
    assert "**29.0**" in render([table])


def test_pretrainings_of_several_sources_say_so(tmp_path):
    """As rows of evaluations and of detection do."""
    for seed, dirty in enumerate((False, True)):
        sha = f"{seed}" * 64
        run = pretraining_run(tmp_path, f"p{seed}", sha, seed=seed, knn_accuracy=57.0)
        file = run.path / "manifest.json"
        manifest = json.loads(file.read_text())
        manifest["git"] = {"revision": f"{seed}" * 40, "dirty": dirty}
        file.write_text(json.dumps(manifest))
    (table,) = tables_of(tmp_path)
    (row,) = table.rows
    assert row.n == 2
    assert {
        "1 of 2 runs made by sources with changes that were not committed",
        "of 2 revisions of the sources",
    } < set(row.notes)
