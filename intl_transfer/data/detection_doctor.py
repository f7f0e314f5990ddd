"""``intl-transfer doctor --datasets``: opens detection data sets, and says what is wrong."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from intl_transfer.data.detection_contents import Contents, count_note, open_set
from intl_transfer.data.detection_sets import (
    DetectionSet,
    custom_sets,
    data_root,
    standard_sets,
)
from intl_transfer.data.detection_sheet import contact_sheet, decoding_problems
from intl_transfer.errors import UserError, did_you_mean
from intl_transfer.files.yamls import read_yaml

_FAMILIES = ("coco", "voc", "shapes")


@dataclass
class Finding:
    """What was found of one set.

    Attributes:
        name: of the set.
        images: their number.
        objects: number of objects.
        classes: number of classes.
        problems: one line each.
        sheet: the contact sheet, if there was anything to draw.
    """

    name: str
    images: int = 0
    objects: int = 0
    classes: int = 0
    problems: list[str] = field(default_factory=list)
    sheet: str | None = None


def run(names: str, folder: str, as_json: bool) -> int:
    """Opens sets, prints a line or more for each; returns 0 if all are as they should be, else 1.

    Args:
        names: separated by commas.
        folder: for the contact sheets; made if absent.
        as_json: print one JSON object instead.
    """
    console = Console(soft_wrap=True, highlight=False)
    found = []
    for one in chosen(names.split(","), data_root()):
        finding = look(one, Path(folder))
        found.append(finding)
        if not as_json:
            _show(console, finding)
    if as_json:
        print(json.dumps([vars(finding) for finding in found], indent=2))
    return 1 if any(finding.problems for finding in found) else 0


def chosen(names: list[str], root: Path) -> list[DetectionSet]:
    """The sets that names stand for: families, sets, and configurations with sets of their own.

    Raises:
        UserError: for a name that stands for nothing.
    """
    standard = standard_sets(root)
    sets = []
    for name in (name.strip() for name in names):
        if name.endswith((".yaml", ".yml")):
            if not Path(name).is_file():
                raise UserError(f"--datasets {name}: there is no such file")
            block = read_yaml(Path(name)).get("CUSTOM_DATASETS")
            if not isinstance(block, dict) or not block:
                raise UserError(f"{name}: no CUSTOM_DATASETS in it; it names no data sets")
            sets += list(custom_sets(block, root, name).values())
        elif name in _FAMILIES:
            sets += [one for key, one in standard.items() if key.startswith(f"{name}_")]
        elif name in standard:
            sets.append(standard[name])
        else:
            known = [*_FAMILIES, *standard]
            raise UserError(
                f"--datasets {name}: no such data set.{did_you_mean(name, known)} Known: "
                f"{', '.join(known)}; sets of your own by their configuration (my.yaml)"
            )
    return sets


def look(one: DetectionSet, folder: Path) -> Finding:
    """Opens one set: counts, annotations, a sample of images, and a contact sheet."""
    contents = open_set(one)
    finding = Finding(one.name, problems=list(contents.problems))
    finding.images, finding.classes = len(contents.pictures), len(contents.classes)
    finding.objects = sum(contents.objects.values())
    if not contents.pictures:
        return finding
    note = count_note(one, contents)
    if note:
        finding.problems.append(note)
    finding.problems += decoding_problems(contents)
    finding.problems += _class_problems(contents)
    folder.mkdir(parents=True, exist_ok=True)
    sheet = folder / f"dataset-{one.name}.png"
    contact_sheet(contents, sheet)
    finding.sheet = str(sheet)
    return finding


def _class_problems(contents: Contents) -> list[str]:
    empty = [name for name in contents.classes if not contents.objects[name]]
    if not empty or len(contents.pictures) < 1000:  # a small set may lack some
        return []
    return [f"no object of the class(es) {', '.join(empty)}"]


def _show(console: Console, finding: Finding) -> None:
    state = "[bold red]problem[/bold red]" if finding.problems else "[bold]ok[/bold]     "
    text = (
        f"{finding.images:,} images, {finding.objects:,} objects of {finding.classes} classes"
        if finding.images
        else "cannot be opened"
    )
    console.print(f"{state} [bold]{escape(finding.name)}[/bold] {text}")
    for problem in finding.problems:
        console.print(f"        {escape(problem)}")
    if finding.sheet:
        console.print(f"        {escape(finding.sheet)}")
