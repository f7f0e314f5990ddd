"""Footnotes on the provenance of rows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from intl_transfer.results.rows import Column
from intl_transfer.results.run import Run, pretrainings_of

FOREIGN_NOTE = (
    "external: read from Detectron2's files in a folder not written by this project; its initial "
    "weights were not verified"
)
INFERRED_NOTE = (
    "method inferred from names in the checkpoint, not stated; `convert --method` confirms it"
)
NOT_STATED_NOTE = "external: {} settings of this table are not stated in its files"
HAND_MADE_NOTE = "external: measured by {}, not by this project"


def provenance_notes(
    members: Sequence[Run], columns: Mapping[Column, Sequence[Run]] | None = None
) -> tuple[str, ...]:
    """Footnotes on the provenance of a row's weights and code.

    Args:
        members: its runs.
        columns: those of each column, if columns have initializations of their own.
    """
    start = members[0].start
    seen = seen_notes(members)
    if start.kind == "external":
        return (FOREIGN_NOTE, *seen)
    notes = [*start.notes, *seen]
    evaluators = dict.fromkeys(run.results.external for run in members if run.results.external)
    if evaluators:
        notes.append(HAND_MADE_NOTE.format(", ".join(map(str, evaluators))))
        unknown = dict.fromkeys(fact for run in members for fact in run.results.not_stated)
        if unknown:
            notes.append(f"external: not stated: {', '.join(unknown)}")
    elif start.kind != "random":
        if any(run.results.initialization.method_is_inferred for run in members):
            notes.append(INFERRED_NOTE)
        if any(run.parent_known and run.parent is None for run in members):
            notes.append("the pretraining run was not among the folders read")
        elif not all(run.parent for run in members):
            notes.append("weights without a pretraining run of this project")
        if words := _of_one_pretraining(columns or {("", ""): members}):
            notes.append(words)
    return (*notes, *code_notes(members))


def seen_notes(runs: Sequence[Run]) -> tuple[str, ...]:
    """A footnote on runs tested on images that they were trained on; none if there are none.

    Args:
        runs: of one row.
    """
    count = sum(run.is_tested_on_training_images for run in runs)
    if not count:
        return ()
    which = "" if count == len(runs) else f"{count} of {len(runs)} runs "
    return (f"{which}tested on the training images: not a figure of unseen images",)


def _of_one_pretraining(columns: Mapping[Column, Sequence[Run]]) -> str:
    """The footnote on columns whose runs repeat only the fine-tuning; "" if there are none."""
    repeated = {column: runs for column, runs in columns.items() if len(runs) > 1}
    found = [column for column, runs in repeated.items() if not pretrainings_of(runs)]
    if not found:
        return ""
    names = ", ".join(" ".join(filter(None, column)) for column in found)
    which = "" if len(found) == len(repeated) else f" ({names})"
    return f"fine-tunings of one pretraining{which}: the spread over pretrainings is not included"


def code_notes(members: Sequence[Run]) -> list[str]:
    """Footnotes on runs with several versions of the code, or changed ones.

    Args:
        members: runs of one row.
    """
    notes = []
    # What a run does not record (a library that it did not load) is no other version.
    versions: defaultdict[str, set[str]] = defaultdict(set)
    for run in members:
        for name, version in run.manifest.versions.items():
            versions[name].add(version)
    several = [
        f"{name} {', '.join(sorted(found))}"
        for name, found in sorted(versions.items())
        if len(found) > 1
    ]
    if several:
        notes.append(f"of several versions: {'; '.join(several)}")
    changed = sum(run.manifest.git.dirty is True for run in members)
    if changed:
        runs = "all runs" if changed == len(members) else f"{changed} of {len(members)} runs"
        notes.append(f"{runs} made by sources with changes that were not committed")
    revisions = {run.manifest.git.revision for run in members} - {None}
    if len(revisions) > 1:
        notes.append(f"of {len(revisions)} revisions of the sources")
    return notes
