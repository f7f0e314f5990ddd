"""Results for other tools: MLflow, Weights & Biases (offline), and a model card."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from intl_transfer.errors import UserError, did_you_mean
from intl_transfer.results.alike import short_names
from intl_transfer.results.grid import clean
from intl_transfer.results.longform import records
from intl_transfer.results.model_card import write_card
from intl_transfer.results.rows import Table

_PROJECT = "intl-transfer"
#: Characters of a run's name that Weights & Biases accepts.
_LONGEST_NAME = 128
# MLflow's names of metrics.
_NO_NAME = re.compile(r"[^\w./ :-]+")

Text = Callable[[str], str]


def export(tables: Sequence[Table], where: str, text: Text = clean) -> str:
    """Exports tables to another tool.

    Args:
        tables: from :func:`intl_transfer.results.tables.build_tables`.
        where: ``mlflow=FOLDER`` or a tracking address, ``wandb=FOLDER``, ``card=README.md``.
        text: applied to every text, for example :meth:`intl_transfer.runs.private.Privacy.text`.

    Returns:
        A one-line summary.

    Raises:
        UserError: for an unknown or missing tool, or nothing to export.
    """
    kind, sign, target = where.partition("=")
    if kind not in _KINDS or not sign or not target:
        hint = did_you_mean(kind, _KINDS)
        raise UserError(f"--export {where}: expected KIND=TARGET, of {', '.join(_KINDS)}.{hint}")
    return _KINDS[kind](tables, target, text)


@dataclass(frozen=True)
class _Exported:
    """A run of a table.

    Attributes:
        name: its row, protocol and seeds, in at most 128 characters.
        described: what it is, by name.
        metrics: by ``task.metric``.
    """

    name: str
    described: dict[str, Any]
    metrics: dict[str, float] = field(default_factory=dict)


def _runs(tables: Sequence[Table], text: Text) -> Iterator[_Exported]:
    """Each run of each table."""
    names = _names(tables)
    grouped: dict[tuple[str, str], _Exported] = {}
    shown = records(tables, lambda value: clean(text(value)))
    for raw, one in zip(records(tables), shown, strict=True):
        if one["run"] is None:
            continue  # published: without runs
        kept = ("task", "metric", "value", "std", "n")
        described = {k: v for k, v in one.items() if k not in kept and v not in (None, "")}
        # By its whole path: runs of two folders may be the same relative to them.
        key = raw["table"], raw["run"]
        if key not in grouped:
            seeds = _seeds(one)
            name = clean(text(names[key]))
            most = _LONGEST_NAME - len(seeds)
            name = name if len(name) <= most else f"{name[: most - 1]}…"
            grouped[key] = _Exported(name + seeds, described)
        grouped[key].metrics[f"{one['task']}.{one['metric']}"] = one["value"]
    if not grouped:
        raise UserError("nothing to export: no run in the tables has metrics")
    yield from grouped.values()


def _names(tables: Sequence[Table]) -> dict[tuple[str, str], str]:
    """By the table's key and the run's path: its row, with its kind, and its protocol, in short."""
    return {
        (table.key, str(path)): f"{row.title}, {names[column]}"
        for table, names in zip(tables, short_names(tables), strict=True)
        for row in table.rows
        for column, values in row.each.items()
        for path in values
    }


def _seeds(one: Mapping[str, Any]) -> str:
    """``, pretraining seed 1, seed 0``, the first if known."""
    first = one["pretraining_seed"]
    own = "not stated" if one["seed"] is None else one["seed"]
    return f"{'' if first is None else f', pretraining seed {first}'}, seed {own}"


def _to_mlflow(tables: Sequence[Table], target: str, text: Text) -> str:
    """A run of MLflow for each run of each table, in one experiment."""
    if "://" not in target:
        target = Path(target).resolve().as_uri()
        # A folder that MLflow can open; since version 3.10 this must be set.
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    try:
        from mlflow import MlflowClient
    except ImportError:
        raise UserError(
            f"--export mlflow={target}: MLflow is not installed; install it with `pip install "
            "'intl-transfer[mlflow]'`"
        ) from None
    client = MlflowClient(tracking_uri=target)
    known = client.get_experiment_by_name(_PROJECT)
    experiment = known.experiment_id if known else client.create_experiment(_PROJECT)
    count = 0
    for one in _runs(tables, text):
        run = client.create_run(experiment, run_name=one.name).info.run_id
        for key, value in one.described.items():
            client.log_param(run, key, value)
        for key, value in one.metrics.items():
            client.log_metric(run, _NO_NAME.sub("_", key), value)
        client.set_terminated(run)
        count += 1
    return f"{count} runs written to MLflow's experiment '{_PROJECT}' at {target}"


def _to_wandb(tables: Sequence[Table], target: str, text: Text) -> str:
    """An offline run of Weights & Biases for each run of each table; nothing is sent."""
    try:
        import wandb
    except ImportError:
        raise UserError(
            f"--export wandb={target}: Weights & Biases is not installed; install it with `pip "
            "install 'intl-transfer[wandb]'`"
        ) from None
    Path(target).mkdir(parents=True, exist_ok=True)
    count = 0
    for one in _runs(tables, text):
        with wandb.init(
            project=_PROJECT,
            dir=target,
            mode="offline",
            name=one.name,
            config=one.described,
            settings=wandb.Settings(
                silent=True,
                console="off",
                save_code=False,
                disable_git=True,
                x_disable_meta=True,
                x_disable_stats=True,
                x_disable_machine_info=True,
            ),
        ) as run:
            run.summary.update(one.metrics)
        count += 1
    # Its service writes in the background; wait for it, so that files are complete.
    wandb.teardown()
    return f"{count} offline runs written to {target}; upload them with `wandb sync`"


_KINDS: dict[str, Callable[[Sequence[Table], str, Text], str]] = {
    "mlflow": _to_mlflow,
    "wandb": _to_wandb,
    "card": write_card,
}
