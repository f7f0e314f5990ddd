"""Common parts of data sets generated from a seed.

Each has object-centric images in ImageFolder layout and scenes in COCO's and in VOC's layout, and
is written atomically.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
from PIL import Image

from intl_transfer.data.augment import Pixels
from intl_transfer.data.scenes import Progress, Scene, SceneSplit, annotated, write_scenes
from intl_transfer.errors import UserError
from intl_transfer.files.jsons import parse_json
from intl_transfer.runs.atomic import write_json

#: Written last; contains the spec.
COMPLETE = "COMPLETE.json"
# Scene ids of the validation split begin here, so that no id is used twice.
_VAL_OFFSET = 100_000


@dataclass(frozen=True)
class SetSpec:
    """What is made.

    Attributes:
        seed: image i of a split depends only on the seed, the size and i.
        object_size: side of object-centric images, in pixels.
        objects_train: their number for training.
        objects_val: their number for validation.
        scene_size: side of scenes, in pixels.
        scenes_train: number of scenes for training.
        scenes_val: number of scenes for validation.
        crowd_fraction: fraction of scenes with a cluster annotated as a crowd.
    """

    set_name: ClassVar[str] = "set"

    seed: int = 0
    object_size: int = 64
    objects_train: int = 2000
    objects_val: int = 400
    scene_size: int = 128
    scenes_train: int = 400
    scenes_val: int = 100
    crowd_fraction: float = 0.05

    def __post_init__(self) -> None:
        where = self.set_name
        for name in self.counts():
            if getattr(self, name) < 1:
                raise UserError(f"{where}: {name} is {getattr(self, name)}; expected at least 1")
        for name in ("object_size", "scene_size"):
            if getattr(self, name) < 32:
                value = getattr(self, name)
                raise UserError(f"{where}: {name} is {value}; expected at least 32 px")
        if not 0 <= self.crowd_fraction <= 1:
            raise UserError(f"{where}: crowd_fraction is {self.crowd_fraction}; expected 0 to 1")
        if self.scenes_train >= _VAL_OFFSET:
            raise UserError(f"{where}: at most {_VAL_OFFSET - 1} training scenes")

    @classmethod
    def counts(cls) -> list[str]:
        """Names of the fields that count images."""
        return ["objects_train", "objects_val", "scenes_train", "scenes_val"]

    def count(self, part: str, split: str) -> int:
        """How many ``objects`` or ``scenes`` of a split (``train`` or ``val``)."""
        return int(getattr(self, f"{part}_{split}"))


S = TypeVar("S", bound=SetSpec)


@dataclass(frozen=True)
class MadeSet(Generic[S]):
    """A data set generated from a spec.

    Attributes:
        name: of its folder, and of its detection sets: ``NAME_coco_train``.
        command: its name for ``intl-transfer data``.
        version: incremented whenever the same spec would give other pixels or annotations.
        classes: names, in the order of the labels.
        spec: the type of its specs.
        render_object: (spec, split, index) to uint8 (size, size, 3) in RGB and the class index.
        render_scene: (spec, split, index) to a scene.
        further: writes the set's additional files, given its folder, the spec and the progress.
        prepare: checks the requirements before generation starts.
    """

    name: str
    command: str
    version: int
    classes: tuple[str, ...]
    spec: type[S]
    render_object: Callable[[S, str, int], tuple[Pixels, int]]
    render_scene: Callable[[S, str, int], Scene]
    further: Callable[[Path, S, Progress], None] | None = None
    prepare: Callable[[], None] | None = None

    def is_complete(self, root: str | Path, spec: S | None = None) -> bool:
        """Whether a folder contains the complete data set, of this spec if one is given."""
        try:
            found = parse_json((Path(root) / COMPLETE).read_bytes(), COMPLETE)
        except (OSError, UserError):
            return False
        if not isinstance(found, dict):
            return False
        if spec is None:
            return True
        made = found.get("version"), found.get("spec")
        return bool(made == (self.version, dataclasses.asdict(spec)))

    def make(
        self,
        root: str | Path,
        spec: S | None = None,
        progress: Progress | None = None,
        force: bool = False,
    ) -> Path:
        """Generates the data set, unless it already exists.

        It is built in a temporary folder and renamed to ``root``, so that an interrupted call
        leaves no partial data set.

        Args:
            root: the set's folder.
            spec: None for the defaults.
            progress: called with (part, done, total).
            force: replace a data set of another spec.

        Returns:
            ``root``.

        Raises:
            UserError: if ``root`` contains a data set of another spec (without ``force``), or other
                files.
        """
        root, spec = Path(root), spec or self.spec()
        if self.is_complete(root, spec):
            return root
        if self.is_complete(root):
            if not force:
                raise UserError(
                    f"{root} contains a data set with other options "
                    f"({self._differences(root, spec)}). Choose another folder, or replace it with "
                    "--force"
                )
        elif root.exists() and any(root.iterdir()):
            raise UserError(
                f"{root} is not empty and has no {COMPLETE}, so it is not a generated data set. "
                "Choose another folder, or remove that one"
            )
        if self.prepare is not None:
            self.prepare()
        root.parent.mkdir(parents=True, exist_ok=True)
        report = progress or (lambda part, done, total: None)
        with tempfile.TemporaryDirectory(prefix=f".{root.name}.", dir=root.parent) as folder:
            work = Path(folder) / "set"
            for split in ("train", "val"):
                self._write_objects(work, spec, split, report)
                self._write_scenes(work, spec, split, report)
            if self.further is not None:
                self.further(work, spec, report)
            made = {"version": self.version, "spec": dataclasses.asdict(spec)}
            write_json(work / COMPLETE, made)
            if root.exists():
                root.rename(Path(folder) / "old")
            work.rename(root)
        return root

    def _differences(self, root: Path, spec: S) -> str:
        found = parse_json((root / COMPLETE).read_bytes(), str(root / COMPLETE))
        found = found if isinstance(found, dict) else {}
        made = found.get("spec")
        there = {"version": found.get("version"), **(made if isinstance(made, dict) else {})}
        here: dict[str, Any] = {"version": self.version, **dataclasses.asdict(spec)}
        return ", ".join(
            f"{name}: {there.get(name)} instead of {value}"
            for name, value in here.items()
            if there.get(name) != value
        )

    def _write_objects(self, root: Path, spec: S, split: str, report: Progress) -> None:
        folder = root / "classification" / split
        for name in self.classes:
            (folder / name).mkdir(parents=True)
        total = spec.count("objects", split)
        for index in range(total):
            image, label = self.render_object(spec, split, index)
            Image.fromarray(image).save(folder / self.classes[label] / f"{index:06d}.png")
            report(f"objects, {split}", index + 1, total)

    def _write_scenes(self, root: Path, spec: S, split: str, report: Progress) -> None:
        total = spec.count("scenes", split)
        named = SceneSplit(
            self.name,
            self.version,
            coco=split,
            voc="trainval" if split == "train" else "test",
            first=1 if split == "train" else _VAL_OFFSET + 1,
            classes=self.classes,
        )
        scenes = (self.render_scene(spec, split, index) for index in range(total))
        write_scenes(root, named, scenes, total, report)

    def contact_sheet(self, spec: S, path: str | Path) -> None:
        """Draws a contact sheet: four images per class, and twelve scenes with annotations.

        Args:
            spec: what to draw.
            path: the PNG file.
        """
        side, count = 128, len(self.classes)
        rows = []
        for row in range(4):
            tiles = [self.render_object(spec, "train", row * count + i)[0] for i in range(count)]
            rows.append(np.concatenate([_resized(tile, side) for tile in tiles], axis=1))
        for row in range(3):
            drawn = [annotated(self.render_scene(spec, "train", row * 4 + i)) for i in range(4)]
            rows.append(np.concatenate([_resized(tile, 2 * side) for tile in drawn], axis=1))
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.concatenate(rows, axis=0)).save(path)


def _resized(image: Pixels, side: int) -> Pixels:
    return np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.NEAREST))
