"""Results for other tools: MLflow, Weights & Biases (offline), and a model card."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from intl_transfer.errors import UserError, did_you_mean
from intl_transfer.results.grid import clean
from intl_transfer.results.longform import records
from intl_transfer.results.model_card import write_card
from intl_transfer.results.rows import Table

_PROJECT = "intl-transfer"
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


def _runs(tables: Sequence[Table], text: Text) -> Iterator[tuple[dict[str, Any], dict[str, float]]]:
    """Each run of each table: its description, and its metrics by ``task.metric``."""
    grouped: dict[tuple[str, str], tuple[dict[str, Any], dict[str, float]]] = {}
    shown = records(tables, lambda value: clean(text(value)))
    for raw, one in zip(records(tables), shown, strict=True):
        if one["run"] is None:
            continue  # published: without runs
        kept = ("task", "metric", "value", "std", "n", "notes")
        described = {k: v for k, v in one.items() if k not in kept and v is not None}
        # By its whole path: runs of two folders may be the same relative to them.
        _, metrics = grouped.setdefault((raw["table"], raw["run"]), (described, {}))
        metrics[f"{one['task']}.{one['metric']}"] = one["value"]
    if not grouped:
        raise UserError("nothing to export: no run in the tables has metrics")
    yield from grouped.values()


def _name(described: dict[str, Any]) -> str:
    seed = described.get("seed", "not stated")
    return f"{described['initialization']}, {described['dataset']}, seed {seed}"


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
    for described, metrics in _runs(tables, text):
        run = client.create_run(experiment, run_name=_name(described)).info.run_id
        for key, value in described.items():
            client.log_param(run, key, value)
        for key, value in metrics.items():
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
    for described, metrics in _runs(tables, text):
        with wandb.init(
            project=_PROJECT,
            dir=target,
            mode="offline",
            name=_name(described),
            config=described,
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
            run.summary.update(metrics)
        count += 1
    # Its service writes in the background; wait for it, so that files are complete.
    wandb.teardown()
    return f"{count} offline runs written to {target}; upload them with `wandb sync`"


_KINDS: dict[str, Callable[[Sequence[Table], str, Text], str]] = {
    "mlflow": _to_mlflow,
    "wandb": _to_wandb,
    "card": write_card,
}
