"""Pretraining runs as analyses need them: settings, the curves of a run, its last figures."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from intl_transfer.errors import UserError
from intl_transfer.runs import MANIFEST, read_manifest, read_metrics, read_results
from intl_transfer.runs.changes import decided
from intl_transfer.runs.folders import run_folders, unsearched
from intl_transfer.runs.records import AnyResults, Manifest, PretrainResults
from intl_transfer.runs.settings import flatten, group
from intl_transfer.runs.times import in_one_order, moment
from intl_transfer.runs.wording import apart


@dataclass
class Run:
    """One run directory.

    Attributes:
        path: the folder.
        manifest: its manifest.
        results: its results; None of a run that has not finished.
        lines: of ``metrics.jsonl``, a step that was written twice by its later line.
    """

    path: Path
    manifest: Manifest
    results: AnyResults | None
    lines: list[dict[str, Any]] = field(default_factory=list, repr=False)

    @property
    def settings(self) -> dict[str, Any]:
        """All settings by dotted key."""
        return flatten(self.manifest.config)

    @property
    def experiment(self) -> dict[str, Any]:
        """All but the seed that decides its result, by dotted key."""
        return decided(self.manifest, self.manifest.dataset)

    def curve(self, key: str) -> tuple[list[int], list[float]]:
        """Steps and values of a figure; infinities stay, lines without the figure do not count."""
        found: dict[int, float] = {}
        for line in self.lines:
            value = as_number(line.get(key))
            if isinstance(line.get("step"), int) and value is not None:
                found[line["step"]] = value
        steps = sorted(found)
        return steps, [found[step] for step in steps]

    def last(self, key: str) -> float:
        """The last value of a figure; NaN where there is none."""
        return (self.curve(key)[1] or [math.nan])[-1]

    def spectra(self, output: bool = False) -> Iterator[tuple[int, list[int], list[float]]]:
        """Step, ranks and eigenvalues (over the largest) of each look at the spectrum.

        Args:
            output: of the transformed embeddings Ẑ in place of Z.
        """
        prefix = "spectrum/output_" if output else "spectrum/"
        found: dict[int, tuple[list[int], list[float]]] = {}
        for line in self.lines:
            ranks, values = line.get(f"{prefix}ranks"), line.get(f"{prefix}eigenvalues")
            if isinstance(ranks, list) and isinstance(values, list) and len(ranks) == len(values):
                found[int(line["step"])] = ranks, [as_number(v) or 0.0 for v in values]
        for step in sorted(found):
            yield (step, *found[step])


def as_number(value: Any) -> float | None:
    """A number of ``metrics.jsonl``, where infinities are text; None for what is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        return float(value)
    except ValueError:
        return None


def find_runs(paths: Iterable[Path]) -> list[Path]:
    """The run directories in some folders and below them, each once, in the order of their names.

    Folders that cannot be read or were not searched are named on stderr.

    Raises:
        UserError: if a path is no folder.
    """
    found: list[Path] = []
    problems: list[str] = []
    skipped: dict[Path, str] = {}
    visited: set[tuple[int, int]] = set()
    for path in paths:
        if not path.is_dir():
            raise UserError(f"{path} is not a folder; expected a run directory, or one with some")
        folders = run_folders(path, problems, skipped, visited)
        found += [folder for folder, files in folders if MANIFEST in files]
    for text in [*problems, *unsearched(skipped, found)]:
        print(text, file=sys.stderr)
    return found


def read_run(path: Path, with_lines: bool = True) -> Run:
    """Reads a run directory.

    Args:
        path: the folder.
        with_lines: also read its metrics.

    Raises:
        UserError: if its manifest or its results are damaged.
    """
    lines = read_metrics(path) if with_lines else []
    return Run(path, read_manifest(path), read_results(path), lines)


def each_once(runs: Sequence[Run]) -> list[Run]:
    """Runs without copies (of one id) and repeats (of one experiment, seed and input).

    Of copies the one that is furthest counts, of repeats the newest, or all if no times say which
    that is; others are named on stderr.

    Args:
        runs: of one stage.
    """
    kept = _best([(run.manifest.id or str(run.path), run) for run in runs])
    alike = []
    for number, agreeing in enumerate(group(kept, lambda run: run.experiment)):
        for run in agreeing.members:
            inputs = sorted(item.sha256 or "" for item in run.manifest.inputs)
            name = (number, run.manifest.seed, inputs, pretraining_id(run))
            alike.append((repr(name), run))
    best = {id(run) for run in _best(alike)}
    return [run for run in kept if id(run) in best]


def _best(named: Sequence[tuple[str, Run]]) -> list[Run]:
    """Of runs with the same name, the one that counts."""
    best: dict[str, Run] = {}
    for name, run in named:
        former = best.get(name, run)
        if _are_undecided(former, run):
            words = f"{former.path} and {run.path} are repeats, and no times say which is newer"
            print(f"{words}; both count", file=sys.stderr)
            best[f"{name} {former.path}"], best[name] = former, run
            continue
        worse, best[name] = sorted((run, former), key=_furthest)
        if worse is not best[name]:
            words = f"{worse.path} is a copy or a repeat of {best[name].path}"
            print(f"left out: {words}", file=sys.stderr)
    return list(best.values())


def _time(run: Run) -> str | None:
    return run.manifest.ended or run.manifest.started


def _are_undecided(one: Run, other: Run) -> bool:
    """Whether two runs repeat each other without times that say which is newer."""
    if one is other or one.manifest.id == other.manifest.id != "":
        return False  # of copies, the one that is furthest counts
    both = [run.manifest.status == "finished" for run in (one, other)]
    times = in_one_order({"one": [_time(one)], "other": [_time(other)]})
    return both[0] == both[1] and times is None


def _furthest(run: Run) -> tuple[bool, float, int]:
    """Sort key of copies and repeats, last the one that counts."""
    time = moment(_time(run))
    seconds = -math.inf if time is None else time[1]
    return run.manifest.status == "finished", seconds, len(run.lines)


def require_one_experiment(runs: Sequence[Run], what: str) -> None:
    """Checks that runs differ only in their seeds.

    Args:
        runs: of one stage.
        what: they are, for the message.

    Raises:
        UserError: naming a run of each experiment, and what sets it apart.
    """
    groups = group(list(runs), lambda run: run.experiment)
    if len(groups) > 1:
        texts = apart([one.differing for one in groups])
        found = "; ".join(
            f"{one.members[0].path} ({text})"
            for one, text in zip(groups[:3], texts[:3], strict=True)
        )
        raise UserError(
            f"{what} are of {len(groups)} experiments, of which there is no mean: {found}. Give "
            "the folders of one of them"
        )


def pretraining_runs(paths: Sequence[Path]) -> list[Run]:
    """The pretraining runs in some folders.

    Raises:
        UserError: if there is none, naming what was found.
    """
    runs = [read_run(path) for path in find_runs(paths)]
    found = [run for run in runs if run.manifest.stage == "pretrain"]
    if not found:
        others = ", ".join(sorted({run.manifest.stage for run in runs})) or "no run at all"
        raise UserError(
            f"{', '.join(map(str, paths)) or 'no folder was given'}: expected pretraining runs, "
            f"found {others}"
        )
    return found


def pretraining_id(run: Run) -> str | None:
    """The id of the pretraining run behind an evaluation; None where none is known."""
    for item in run.manifest.inputs:
        behind = item.provenance.pretrain_run if item.provenance else None
        if behind is not None and behind.id:
            return behind.id
    return None


def knn_of(run: Run) -> float:
    """The k-NN accuracy of a pretraining run, in %; NaN where it was not measured."""
    results = run.results
    value = results.knn_accuracy if isinstance(results, PretrainResults) else None
    return math.nan if value is None else float(value)


def label(value: Any) -> str:
    """A setting's value, short."""
    return f"{value:g}" if isinstance(value, float) else json.dumps(value).strip('"')
