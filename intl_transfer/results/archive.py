"""Copies what tables are made of, and nothing else, to be published or put under version control.

    intl-transfer archive runs/ --out records/
    intl-transfer collect records/

For every run that finished or failed: its manifest, its results, and the lines of `metrics.jsonl`
that figures are drawn from, of a curve at most 50; kilobytes instead of gigabytes. Absolute paths,
hosts, users and command lines are removed. The copy is kept only if its tables equal those of the
runs.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from intl_transfer.errors import UserError
from intl_transfer.results.reading import Entry
from intl_transfer.results.series import CURVES
from intl_transfer.runs import MANIFEST, METRICS, RESULTS, read_metrics
from intl_transfer.runs.directory import read_json_object
from intl_transfer.runs.private import Privacy
from intl_transfer.runs.settings import fingerprint
from intl_transfer.runs.times import in_seconds, moment, since_first

#: What a sweep is drawn by, beside its runs.
SWEEP = "sweep.yaml"
#: Of a curve.
MOST_POINTS = 50


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``intl-transfer archive``."""
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUNS", help="run directories, or folders of them"
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder of the copies; must be new"
    )
    parser.add_argument(
        "--anonymous",
        action="store_true",
        help="for double-blind review: also without addresses, e-mail, revisions and times",
    )


def run(arguments: argparse.Namespace) -> int:
    """Archives; returns 0."""
    count, size = archive(arguments.runs, arguments.out, arguments.anonymous)
    print(f"{arguments.out}: records of {count} runs, {size / 1e3:.0f} kB")
    return 0


def archive(roots: Sequence[Path], out: Path, is_anonymous: bool = False) -> tuple[int, int]:
    """Writes the records of all runs below some folders that finished or failed.

    Those that failed are in no table, but figures may show that they did.

    Args:
        roots: run directories, or folders of them.
        out: where to; below it runs lie as they lay below their root.
        is_anonymous: also without what identifies a group.

    Returns:
        The number of runs, and the bytes written.

    Raises:
        UserError: if ``out`` exists, no run is finished, two runs or sweeps would get one place, or
            the tables made from the copies differ from those of the runs.
    """
    from intl_transfer.results.collect import collect
    from intl_transfer.results.outputs import privacy_of

    if out.exists():
        raise UserError(f"--out {out} is there already; choose a new folder, or remove it")
    found = collect(roots, cache=False)
    by_path = {entry.path: entry for entry in found.entries}
    finished, failed = list[Path](), list[Path]()
    for entry in found.entries:
        if entry.status == "failed":
            failed.append(entry.path)
        elif entry.status == "finished" and (entry.path / RESULTS).is_file():
            finished.append(entry.path)
        elif entry.status == "finished":  # Detectron2's own folder
            print(
                f"left out: {entry.path} has no {RESULTS}; copy what other programs wrote as it is"
            )
    if not finished:
        names = ", ".join(map(str, roots))
        raise UserError(f"{names}: no finished run; expected run directories with {RESULTS}")
    privacy = privacy_of(found, roots, is_anonymous)
    times = _times(found.entries) if is_anonymous else None
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as scratch:
        copy = Path(scratch) / out.name
        placed: dict[Path, Path] = {}
        for run in (*finished, *failed):
            folder = copy / _placed(run, roots, placed, "runs")
            folder.mkdir(parents=True)
            for name, content in _records(by_path[run], privacy, times):
                (folder / name).write_text(content)
        for file in _sweeps((*finished, *failed), roots):
            text = privacy.text(file.read_text())
            (copy / _placed(file, roots, placed, "files")).write_text(text)
        _compare(finished, copy)
        size = sum(file.stat().st_size for file in copy.rglob("*") if file.is_file())
        copy.rename(out)
    return len(finished) + len(failed), size


def _place(run: Path, roots: Sequence[Path]) -> Path:
    """Where a run lies below its root; a run that is itself a root keeps its name."""
    for root in roots:
        if run.resolve().is_relative_to(root.resolve()):
            below = run.resolve().relative_to(root.resolve())
            return below if below.parts else Path(run.resolve().name)
    raise AssertionError(f"{run} is below none of {roots}")


def _placed(source: Path, roots: Sequence[Path], placed: dict[Path, Path], what: str) -> Path:
    """:func:`_place`, noted as taken.

    Raises:
        UserError: if another source has that place, or one around or within it.
    """
    at = _place(source, roots)
    for other, former in placed.items():
        if at.is_relative_to(other) or other.is_relative_to(at):
            raise UserError(
                f"two {what} would be {at}: {former} and {source}; archive their roots one by one"
            )
    placed[at] = source
    return at


def _sweeps(runs: Sequence[Path], roots: Sequence[Path]) -> list[Path]:
    """The sweeps that some runs are of: in the roots, and in folders between these and the runs."""
    tops = {root.resolve() for root in roots}
    around = [run for run in (run.resolve() for run in runs) if run not in tops]
    folders = tops | {
        folder
        for run in around
        for folder in run.parents
        if any(folder.is_relative_to(top) for top in tops)
    }
    return [folder / SWEEP for folder in sorted(folders) if (folder / SWEEP).is_file()]


def _times(entries: Sequence[Entry]) -> dict[Path, str]:
    """When runs ended, as an anonymous copy states it: after the first of them.

    Which of two is the newer one decides tables; on which day it ended does not. Those copied from
    an anonymous archive keep its times.
    """
    runs = [(entry.path, entry.manifest) for entry in entries if entry.manifest is not None]
    ended = {path: in_seconds(manifest.ended) for path, manifest in runs}
    first = min((seconds for seconds in ended.values() if seconds is not None), default=0.0)
    after = {path: seconds - first for path, seconds in ended.items() if seconds is not None}
    archive = fingerprint(
        {f"{manifest.id} {number}": after.get(path) for number, (path, manifest) in enumerate(runs)}
    )
    found = {path: since_first(seconds, archive) for path, seconds in after.items()}
    kept = {path: manifest.ended for path, manifest in runs if moment(manifest.ended) is not None}
    return {path: found.get(path) or text for path, text in kept.items() if text is not None}


def _records(
    entry: Entry, privacy: Privacy, times: Mapping[Path, str] | None
) -> Iterator[tuple[str, str]]:
    """The files of a run's copy; ``times`` are those of an anonymous one."""
    from intl_transfer.results.copies import identity

    run = entry.path
    for name in (MANIFEST, RESULTS):
        if (run / name).is_file():
            record = privacy.value(read_json_object(run / name))
            if times is not None and name == MANIFEST and run in times:
                record["ended"] = times[run]
            if name == RESULTS and entry.manifest is not None and not entry.manifest.id:
                record["copy_of"] = identity(entry)  # without paths it is no longer to be seen
            yield name, _lines(record)
    lines = _drawn(read_metrics(run))
    if times is not None:  # seconds since the first of them
        lines = [{**line, "time": line.get("time", 0) - lines[0].get("time", 0)} for line in lines]
    if lines:
        yield METRICS, "".join(json.dumps(privacy.value(line)) + "\n" for line in lines)


def _drawn(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What figures read: the spectrum, skipped steps, the last of everything, thinned curves."""
    last = {key: index for index, line in enumerate(lines) for key in line}
    kept = set(last.values())
    for key in CURVES:
        # A continued run wrote steps again: as in curves, the last line counts.
        found = {
            line.get("iteration", line.get("step")): index
            for index, line in enumerate(lines)
            if key in line
        }
        kept.update(_thinned(list(found.values())))
    return [
        line
        for index, line in enumerate(lines)
        if index in kept
        or "skipped_steps" in line
        or any(key.startswith("spectrum/") for key in line)
    ]


def _thinned(found: list[int]) -> list[int]:
    """At most :data:`MOST_POINTS` of a list, evenly spaced, with its first and last."""
    if len(found) <= MOST_POINTS:
        return found
    return [found[i * (len(found) - 1) // (MOST_POINTS - 1)] for i in range(MOST_POINTS)]


def _lines(record: Mapping[str, Any]) -> str:
    """A JSON object with one field a line: small, and a change shows where it is."""
    fields = (f"{json.dumps(key)}: {json.dumps(value)}" for key, value in record.items())
    return "{\n" + ",\n".join(fields) + "\n}\n"


def _compare(runs: Sequence[Path], copy: Path) -> None:
    """Tables of the copy against those of the runs, every digit that is shown."""
    from intl_transfer.results import build_tables, collect, render

    shown = [
        render(build_tables(collect(paths, cache=False)), "md", precision=6)
        for paths in (runs, [copy])
    ]
    if shown[0] != shown[1]:
        differing = next(
            (
                f"'{a}' became '{b}'"
                for a, b in zip(*map(str.splitlines, shown), strict=False)
                if a != b
            ),
            "a row is missing",
        )
        raise UserError(
            f"the copy's tables are not those of the runs: {differing}; nothing is kept"
        )
