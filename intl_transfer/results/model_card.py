"""A backbone's own results in its model card: a table, and an index for model hubs."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from intl_transfer.errors import UserError
from intl_transfer.files.yamls import parse_yaml
from intl_transfer.results.alike import protocols
from intl_transfer.results.grid import clean
from intl_transfer.results.power import PRIMARY
from intl_transfer.results.render import escape_markdown
from intl_transfer.results.rounding import rounded
from intl_transfer.results.rows import Column, Row, Table
from intl_transfer.results.run import Run
from intl_transfer.results.statistics import Summary
from intl_transfer.runs import MANIFEST, read_manifest, read_results, write_atomically
from intl_transfer.runs.atomic import sha256_file
from intl_transfer.runs.records import PretrainResults, PretrainRun, Provenance

_BEGIN, _END = "<!-- results of intl-transfer -->", "<!-- end of results -->"
_ALONE = "†: a single run, beside means of several."

Text = Callable[[str], str]


def write_card(tables: Sequence[Table], target: str, text: Text) -> str:
    """Writes the results of one backbone into its model card.

    Controls are left out: they are made from the backbone, but are no results of it.

    Args:
        tables: from :func:`intl_transfer.results.tables.build_tables`.
        target: the card, next to the backbone or in its pretraining run.
        text: applied to every text.

    Returns:
        A one-line summary.

    Raises:
        UserError: if there is no card, or no result of its backbone.
    """
    file = Path(target)
    if not file.is_file():
        raise UserError(f"--export card={target}: expected a model card, found none")
    found = _rows_of(tables, file)
    rows = [(table, row) for table, row in found if not row.control]
    left = len(found) - len(rows)
    omitted = f"; {left} rows of controls left out" if left else ""
    if not rows:
        raise UserError(
            f"--export card={target}: no row of the tables is initialized with a backbone from "
            "this folder; expected its pretraining run, or its weights (*.safetensors), next to "
            f"the card{omitted}"
        )
    results = [one for table, row in rows for one in _results(table, row)]
    content = _with_index(file, results, text)
    known = re.compile(rf"\n?{re.escape(_BEGIN)}.*?{re.escape(_END)}\n?", re.DOTALL)
    content = known.sub("", content).rstrip("\n") + "\n" + _section(results, text)
    write_atomically(file, lambda out: out.write(content.encode()))
    return f"{len(results)} metrics written to {target}{omitted}"


@dataclass(frozen=True)
class _Result:
    """One metric of one row.

    Attributes:
        name: of the row, with its kind.
        dataset: its name.
        protocol: data set, detector or network, and settings, which tell it from others.
        metric: with its column group.
        quantity: the metric alone.
        task: as model hubs call it.
        summary: of the runs.
        pretrainings: those that a mean is over, with their seeds, in words; "" for one.
        alone: whether it is a single run, beside means of several.
        notes: footnotes.
    """

    name: str
    dataset: str
    protocol: str
    metric: str
    quantity: str
    task: str
    summary: Summary
    pretrainings: str
    alone: bool
    notes: tuple[str, ...]

    @property
    def repetitions(self) -> str:
        """What the mean is over: ``2 pretrainings (seeds 0, 1) × 3``."""
        if not self.pretrainings:
            return self.summary.count
        _, sign, each = self.summary.short_count.partition(" × ")
        return self.pretrainings + sign + each


def _results(table: Table, row: Row) -> Iterator[_Result]:
    protocol = protocols(table)
    for column in table.columns():
        if (summary := row.metrics.get(column)) is None:
            continue
        task, metric = column
        heading = table.heading(task)
        mark = row.marks.get(column)
        yield _Result(
            name=row.title,
            dataset=table.dataset_of(task),
            protocol=protocol[column],
            metric=f"{heading} {metric}",
            # Columns of one metric are named by what it is measured at: epochs.
            quantity=heading if heading in PRIMARY else metric,
            task=_hub_task(table, task),
            summary=summary,
            pretrainings=_pretrainings(row, column),
            alone=mark is not None and mark.alone,
            notes=row.notes,
        )


def _hub_task(table: Table, task: str) -> str:
    """A column group's task, as model hubs call it."""
    if table.family != "detection":
        return "image-classification"
    return "image-segmentation" if task == "mask" else "object-detection"


def _pretrainings(row: Row, column: Column) -> str:
    """The pretrainings that a mean is over: ``2 pretrainings (seeds 0, 1)``; "" for one."""
    measured = [run for run in row.runs if run.path in row.each.get(column, {})]
    seeds = {run.start.unit or run.parent: run.start.unit_seed for run in measured}
    if len(seeds) < 2:
        return ""
    known = [seed for seed in seeds.values() if seed is not None]
    which = ", ".join(map(str, sorted(known))) if len(known) == len(seeds) else "not stated"
    return f"{len(seeds)} pretrainings (seeds {which})"


def _rows_of(tables: Sequence[Table], card: Path) -> list[tuple[Table, Row]]:
    """The rows with a run from a backbone next to the card, with their tables."""
    folder = card.parent
    hashes = {sha256_file(one) for one in sorted(folder.glob("*.safetensors"))}
    identity, results = "", None
    if (folder / MANIFEST).exists():
        identity, results = read_manifest(folder).id, read_results(folder)
    made = results if isinstance(results, PretrainResults) else None
    if made is not None and made.backbone_sha256:
        hashes.add(made.backbone_sha256)
    return [
        (table, row)
        for table in tables
        for row in table.rows
        if any(
            hashes & _hashes(run) or (made is not None and _is_of_the_end(run, identity, made))
            for run in row.runs
        )
    ]


def _is_of_the_end(run: Run, identity: str, made: PretrainResults) -> bool:
    """Whether a run's weights are a pretraining's final backbone, from whichever file.

    A checkpoint of the middle is another network, as is one of before the run was continued.
    """
    provenance = run.results.initialization.provenance or Provenance()
    origin = provenance.pretrain_run or PretrainRun()
    is_whole = origin.planned_epochs is None and origin.epochs == made.epochs
    is_online = provenance.branch in (None, "online")
    return bool(identity) and origin.id == identity and is_whole and is_online


def _hashes(run: Run) -> set[str]:
    """Hashes of a run's initial weights, and of their sources."""
    start = run.results.initialization
    source = start.provenance.source_sha256 if start.provenance else None
    return {sha for sha in (start.weights_sha256, source) if sha}


def _section(results: Sequence[_Result], text: Text) -> str:
    """The results as a section of the card, each with its footnotes, as in tables."""
    lines = ["", _BEGIN, "", "## Results", ""]
    lines += ["| initialization | data | metric | mean ± std | n |", "|---|---|---|---|---|"]
    notes = list(dict.fromkeys(note for one in results for note in one.notes))
    for one in results:
        shown = rounded(one.summary.mean, 2) + "†" * one.alone
        shown += f" ± {rounded(one.summary.std, 2)}" if one.summary.std is not None else ""
        name, *safe = (_safe(text(cell)) for cell in (one.name, one.protocol, one.metric))
        numbers = ",".join(str(notes.index(note) + 1) for note in one.notes)
        name += f" [{numbers}]" if numbers else ""
        lines.append(f"| {' | '.join([name, *safe])} | {shown} | {one.repetitions} |")
    foot = [_ALONE] if any(one.alone for one in results) else []
    foot += [f"[{number}] {_safe(text(note))}" for number, note in enumerate(notes, 1)]
    # Two trailing spaces are a line break in Markdown.
    return "\n".join([*lines, "", *(f"{line}  " for line in foot), *[""] * bool(foot), _END, ""])


def _safe(text: str) -> str:
    return escape_markdown(clean(text))


def _hub_entry(text: Text, one: _Result) -> dict[str, Any]:
    """One result in the form of model hubs' ``model-index``."""
    mean = f", mean of {one.repetitions}" if one.pretrainings else ""
    notes = [clean(text(note)) for note in one.notes]
    metric = {
        "type": one.quantity,
        "name": clean(text(one.metric + mean)),
        "value": one.summary.mean,
        **({"args": {"notes": notes}} if notes else {}),
    }
    protocol = clean(text(one.protocol))
    # Hubs tell results apart by the data set and its configuration, not by its name.
    data = {"type": clean(text(one.dataset)), "name": protocol, "config": protocol}
    return {"task": {"type": one.task}, "dataset": data, "metrics": [metric]}


def _with_index(file: Path, results: Sequence[_Result], text: Text) -> str:
    """The card with the results in its front matter (if any)."""
    content = file.read_text(encoding="utf-8")
    match = re.match(r"---\n(.*?)\n---\n", content, re.DOTALL)
    if match is None:
        return content
    matter: Any = None
    with contextlib.suppress(UserError):
        matter = parse_yaml(match.group(1), str(file))
    if not isinstance(matter, dict):
        raise UserError(f"{file}: its front matter is not a YAML mapping")
    index: dict[str, list[dict[str, Any]]] = {}
    for one in results:
        index.setdefault(clean(text(one.name)), []).append(_hub_entry(text, one))
    matter["model-index"] = [{"name": name, "results": found} for name, found in index.items()]
    written = yaml.safe_dump(matter, sort_keys=False, allow_unicode=True)
    return f"---\n{written}---\n{content[match.end() :]}"
