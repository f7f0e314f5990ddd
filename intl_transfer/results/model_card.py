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
from intl_transfer.results.grid import clean
from intl_transfer.results.rounding import rounded
from intl_transfer.results.rows import Column, Row, Table
from intl_transfer.results.run import Run
from intl_transfer.results.statistics import Summary
from intl_transfer.runs import MANIFEST, read_manifest, read_results, write_atomically
from intl_transfer.runs.atomic import sha256_file
from intl_transfer.runs.records import PretrainResults, PretrainRun, Provenance

_BEGIN, _END = "<!-- results of intl-transfer -->", "<!-- end of results -->"

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
        name: of the row.
        dataset: its name.
        protocol: detector or network, and schedule.
        metric: with its column group.
        summary: of the runs.
        pretrainings: those that a mean is over, with their seeds, in words; "" for one.
    """

    name: str
    dataset: str
    protocol: str
    metric: str
    summary: Summary
    pretrainings: str

    @property
    def repetitions(self) -> str:
        """What the mean is over: ``2 pretrainings (seeds 0, 1) × 3``."""
        if not self.pretrainings:
            return self.summary.count
        _, sign, each = self.summary.short_count.partition(" × ")
        return self.pretrainings + sign + each


def _results(table: Table, row: Row) -> Iterator[_Result]:
    for column in table.columns():
        if (summary := row.metrics.get(column)) is None:
            continue
        part = next((p for p in table.parts if column[0] in p.tasks), table)
        yield _Result(
            row.name,
            part.dataset,
            f"{part.architecture}, {part.schedule}".strip(", "),
            f"{table.heading(column[0])} {column[1]}",
            summary,
            _pretrainings(row, column),
        )


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
    """The results as a section of the card."""
    lines = ["", _BEGIN, "", "## Results", ""]
    lines += ["| initialization | data | metric | mean ± std | n |", "|---|---|---|---|---|"]
    for one in results:
        shown = rounded(one.summary.mean, 2)
        shown += f" ± {rounded(one.summary.std, 2)}" if one.summary.std is not None else ""
        cells = (one.name, f"{one.dataset}, {one.protocol}".strip(", "), one.metric)
        safe = [clean(text(cell)).replace("|", "\\|") for cell in cells]
        lines.append(f"| {' | '.join(safe)} | {shown} | {one.repetitions} |")
    return "\n".join([*lines, "", _END, ""])


def _hub_entry(text: Text, one: _Result) -> dict[str, Any]:
    """One result in the form of model hubs' ``model-index``."""
    data = clean(text(one.dataset))
    mean = f", mean of {one.repetitions}" if one.pretrainings else ""
    metric = {
        "type": one.metric.split()[-1],
        "name": clean(text(one.metric + mean)),
        "value": one.summary.mean,
    }
    return {
        "task": {"type": "object-detection" if "AP" in one.metric else "image-classification"},
        "dataset": {"type": data, "name": data},
        "metrics": [metric],
    }


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
