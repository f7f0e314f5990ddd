"""``intl-transfer doctor --datasets``: a dry run of training's data, without training."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from intl_transfer.data.annotations import Contents
from intl_transfer.data.detection_contents import open_set, remarks
from intl_transfer.data.detection_roles import (
    agree,
    classes_in,
    count_problem,
    label_problem,
    labels_in,
    mask_problem,
    mask_setting,
    role_problems,
    roles_in,
    seen_in_training,
)
from intl_transfer.data.detection_sets import (
    DetectionSet,
    custom_sets,
    standard_sets,
)
from intl_transfer.data.detection_sheet import contact_sheet
from intl_transfer.data.made import MADE
from intl_transfer.data.roots import data_root
from intl_transfer.errors import UserError, did_you_mean
from intl_transfer.files.yaml_bases import merged

_OF_A_PATH = re.compile(r"[/\\\0]")
_FAMILIES = ("coco", "voc", *MADE)


@dataclass
class Finding:
    """The findings on one data set, or on the data sets of one configuration together.

    Attributes:
        name: of the set, or the configuration.
        images: their number.
        objects: number of objects.
        classes: number of classes.
        masks: number of objects with a mask.
        problems: one line each; training or evaluation would stop at the first.
        notes: one line each: corrections and remarks.
        sheet: the contact sheet, if there was anything to draw.
    """

    name: str
    images: int = 0
    objects: int = 0
    classes: int = 0
    masks: int = 0
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    sheet: str | None = None


@dataclass(frozen=True)
class Request:
    """Data sets to check, and their roles.

    Attributes:
        sets: to check, training sets first.
        config: the configuration that names them, if any.
        train: names of the training sets.
        test: names of the test sets.
    """

    sets: list[DetectionSet]
    config: Path | None = None
    train: tuple[str, ...] = ()
    test: tuple[str, ...] = ()


def run(names: str, folder: str, as_json: bool, everything: bool = False) -> int:
    """Checks data sets and prints the findings; returns 0 if all are usable, else 1.

    Args:
        names: separated by commas.
        folder: for the contact sheets; created if missing.
        as_json: print one JSON object instead.
        everything: decode every image.
    """
    console = Console(soft_wrap=True, highlight=False)
    found: list[Finding] = []
    for request in chosen(names.split(","), data_root()):
        for finding in look(request, Path(folder), everything):
            found.append(finding)
            if not as_json:
                _show(console, finding)
    if as_json:
        print(json.dumps([asdict(finding) for finding in found], indent=2))
    return 1 if any(finding.problems for finding in found) else 0


def chosen(names: list[str], root: Path) -> list[Request]:
    """The data sets of given names: families, data sets, and configurations with custom data sets.

    Raises:
        UserError: for an unknown name.
    """
    standard = standard_sets(root)
    requests = []
    for name in (name.strip() for name in names):
        if name.endswith((".yaml", ".yml")):
            requests.append(_configured(Path(name), standard, root))
        elif name in _FAMILIES:
            own = [one for key, one in standard.items() if key.startswith(f"{name}_")]
            requests += [Request([one]) for one in own]
        elif name in standard:
            requests.append(Request([standard[name]]))
        else:
            known = [*_FAMILIES, *standard]
            raise UserError(
                f"--datasets {name}: no such data set.{did_you_mean(name, known)} Known: "
                f"{', '.join(known)}; for custom data sets, give their configuration (my.yaml)"
            )
    return requests


def _configured(config: Path, standard: dict[str, DetectionSet], root: Path) -> Request:
    if not config.is_file():
        raise UserError(f"--datasets {config}: there is no such file")
    block = merged(config).get("CUSTOM_DATASETS")
    if not isinstance(block, dict) or not block:
        raise UserError(f"{config}: no CUSTOM_DATASETS in it; it names no data sets")
    own = custom_sets(block, root, str(config))
    for name in own:
        if name in standard:
            raise UserError(f"CUSTOM_DATASETS.{name}: a data set of this name already exists")
    train, test = roles_in(config)
    known = {**standard, **own}
    used = [name for name in dict.fromkeys([*train, *test]) if name in own]
    if not used:  # roles of another configuration: each data set is checked separately
        return Request(list(own.values()), config)
    for name in [*train, *test]:
        if name not in known:
            raise UserError(
                f"{config}: no data set '{name}' is registered.{did_you_mean(name, known)} Custom "
                "data sets are defined in CUSTOM_DATASETS (docs/detection.md)"
            )
    ordered = dict.fromkeys([*train, *test, *own])
    return Request([known[name] for name in ordered], config, tuple(train), tuple(test))


def look(request: Request, folder: Path, everything: bool = False) -> list[Finding]:
    """Checks data sets one by one, draws a contact sheet of each, and compares them."""
    findings, opened = [], {}
    roles = dict.fromkeys([*request.train, *request.test])
    for one in request.sets:
        contents = open_set(one, everything)
        opened[one.name] = contents
        finding = _finding(one, contents, folder)
        if roles and one.name not in roles:  # no training of this configuration would stop at it
            finding.notes = [f"not used here: {text}" for text in finding.problems] + finding.notes
            finding.problems = []
        findings.append(finding)
    if request.config is None or not roles:
        return findings
    used = {name: opened[name] for name in roles}
    if not any(contents.problems for contents in used.values()):
        together = _together(request, request.config, used)
        if together.problems or together.notes:
            findings.append(together)
    return findings


def _together(request: Request, config: Path, used: dict[str, Contents]) -> Finding:
    """What training asks of the sets that it uses, beyond each of them alone."""
    train, test = ({name: used[name] for name in role} for role in (request.train, request.test))
    standard = standard_sets(Path())
    agreement = agree(used, standard)
    problems = [*agreement.problems, *role_problems(train, test)]
    if not train:
        problems.append("DATASETS.TRAIN is empty; expected the name of a data set, or several")
    if len(test) != 1:
        problems.append(f"DATASETS.TEST is {request.test}; expected one data set")
    for problem in (
        count_problem(used, standard, *classes_in(config)),
        mask_problem(used, mask_setting(config)),
        _label_problem(config, train),
    ):
        problems += [] if problem is None else [problem]
    notes = [*agreement.notes, *seen_in_training(train, test)]
    return Finding(config.name, problems=problems, notes=notes)


def _label_problem(config: Path, train: dict[str, Contents]) -> str | None:
    try:
        return label_problem(train, labels_in(config, train))
    except UserError as error:
        return str(error)


def _finding(one: DetectionSet, contents: Contents, folder: Path) -> Finding:
    finding = Finding(one.name, problems=contents.problems, notes=[*remarks(one, contents)])
    finding.images, finding.classes = len(contents.images), len(contents.classes)
    finding.objects, finding.masks = sum(contents.objects.values()), contents.masks[0]
    if contents.images:
        folder.mkdir(parents=True, exist_ok=True)
        sheet = folder / f"dataset-{_OF_A_PATH.sub('_', one.name)[:100]}.png"
        contact_sheet(contents, sheet)
        finding.sheet = str(sheet)
    return finding


def _show(console: Console, finding: Finding) -> None:
    state = "[bold red]problem[/bold red]" if finding.problems else "[bold]ok[/bold]     "
    text = "cannot be opened" if finding.problems else "its sets together"
    if finding.images:
        masks = f", {finding.masks:,} with masks" if finding.masks else ""
        text = (
            f"{finding.images:,} images, {finding.objects:,} objects of {finding.classes} "
            f"classes{masks}"
        )
    console.print(f"{state} [bold]{escape(finding.name)}[/bold] {text}")
    for problem in finding.problems:
        console.print(f"        {escape(problem)}")
    for note in finding.notes:
        console.print(f"        note: {escape(note)}")
    if finding.sheet:
        console.print(f"        {escape(finding.sheet)}")
