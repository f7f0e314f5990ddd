"""The sources of the data set `photo_cutouts`: Debian's Tux Paint stamps and GCompris photographs.

They are not part of this project. Both lists were chosen by inspecting every image: drawn stamps,
parts of objects, and mirrored duplicates are excluded; photographs that contain an animal, vehicle,
flower, fruit, tool or instrument (also as a statue) are not used as backgrounds, and of several
photographs of one place only one is used.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from intl_transfer.data.augment import Pixels
from intl_transfer.data.images import decode_cut_out, decode_image, scaled
from intl_transfer.errors import UserError
from intl_transfer.files.rcc import RccFile

Part = Literal["train", "test"]

#: Installation prefix of Debian's packages.
SHARE = Path("/usr/share")
PACKAGES = {
    "tuxpaint-stamps-default": Path("tuxpaint/stamps"),
    "gcompris-qt-data": Path("gcompris-qt/rcc"),
}
#: Folder of each class's stamps, and excluded names within it.
CLASSES: dict[str, str] = {
    "mammal": "animals/mammals",
    "bird": "animals/birds",
    "fruit": "food/fruit",
    "vegetable": "food/vegetables",
    "flower": "plants/flowers",
    "vehicle": "vehicles",
    "tool": "household/tools",
    "instrument": "hobbies/music",
}
_NO_PHOTOGRAPHS = ("cartoon", "toys", "plastic")
_LEFT_OUT = {
    "echidna": "a silhouette",
    "hedgehog": "a drawing",
    "7spoke256": "a wheel",
    "wheel_tractor": "a wheel",
    "sedan_police": "parts to be laid over another stamp",
    "cementmixer": "a tool on the wheels of a vehicle",
}
# The same photograph in other colors, or the same animals: never in two parts.
_ALIKE = {
    "apple_red": "apple_green",
    "gnu-baby-stand": "gnu-baby",
    "pig_golden2": "pig_golden",
}

#: Backgrounds: resource file, folder in it, names.
_ACTIVITIES = "/gcompris/src/activities"
BACKGROUNDS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    (
        "explore_monuments.rcc",
        "explore_monuments/resource",
        (
            *("egypt/bentPyramid", "egypt/greatPyramidOfGiza", "egypt/meidumPyramid"),
            *("egypt/redPyramid", "france/arlesAmphitheater", "france/chateaudeChambord"),
            *("france/chateaudeChenonceau", "france/citedeCarcassonne", "france/eiffelTower"),
            *("france/montStMichel", "france/pontduGard", "france/reimsCathedral"),
            *("france/rocamadour", "germany/neuschwansteinCastle", "germany/schwerinPalace"),
            *("germany/trierImperialBaths", "india/ajantaCave", "india/charminar"),
            *("india/goldenTemple", "india/hawaMahal", "india/qutubMinar", "india/rangGhar"),
            *("usa/canyondeChelly", "usa/fortSumter", "usa/georgeWashingtonBirthplace"),
            *("usa/lincolnMemorial", "usa/navajo", "wonders/chichenItza"),
            *("wonders/greatWallofChina", "wonders/machuPicchu", "wonders/petra"),
            "wonders/tajMahal",
        ),
    ),
    (
        "categorization.rcc",
        "categorization/resource/images/renewable",
        (
            *("dam1", "dam2", "dam3", "dam4", "dam5", "geothermal", "solar4", "solar5", "solar6"),
            *("solar7", "solar8", "windmill", "windmill1", "windmill11", "windmill12"),
            *("windmill13", "windmill15", "windmill2", "windmill3", "windmill4", "windmill5"),
            *("windmill6", "windmill8", "windmill9"),
        ),
    ),
    (
        "categorization.rcc",
        "categorization/resource/images/monuments",
        (
            *("burj", "cathedral", "empireState", "jucheTower", "monument1", "monument2"),
            *("operaHouse", "parthenon", "zimniPalace"),
        ),
    ),
    (
        "details.rcc",
        "details/resource/image",
        (
            *("EgeskovSlotSpejling_background", "EilanDonanCastle_background"),
            *("FanoeWindmill_background", "Louvre_2007_02_24_c_background"),
            *("NDP_background", "Nagoya_background"),
        ),
    ),
    ("clickgame.rcc", "clickgame/resource", ("sea1", "sea2", "sea5")),
)

# One in this many of each class, and of the backgrounds, is for the test set.
_TEST_SHARE = 3
# Maximum size in memory: larger than any scene needs, small enough to keep all.
_LARGEST_CUT_OUT, _LARGEST_BACKGROUND = 320, 512


@dataclass(frozen=True)
class Source:
    """A stamp or a photograph.

    Attributes:
        name: its path: below the stamps' folder, or ``FILE.rcc:PATH`` for a photograph.
        label: class index; -1 for a photograph.
        part: ``train`` or ``test``. Pretraining sees those of ``train``.
    """

    name: str
    label: int
    part: Part


def folders(share: Path | None = None) -> tuple[Path, Path]:
    """The folders of stamps and of resource files.

    Args:
        share: in place of ``/usr/share``, for packages unpacked elsewhere.

    Raises:
        UserError: if packages are missing, with the command to install them.
    """
    root = share or SHARE
    missing = [name for name, place in PACKAGES.items() if not (root / place).is_dir()]
    if missing:
        places = " and ".join(str(root / PACKAGES[name]) for name in missing)
        raise UserError(
            f"photo-cutouts needs {places}, of Debian's {' and '.join(missing)}: "
            f"`apt-get install --no-install-recommends {' '.join(missing)}`, or unpack the "
            "packages (dpkg -x) and give --share DIR/usr/share"
        )
    stamps, resources = (root / place for place in PACKAGES.values())
    return stamps, resources


def _is_test(ranked: Sequence[str], group: str) -> bool:
    """Whether a group is among the first third in the order of its hashes, rounded up."""
    order = sorted(ranked, key=lambda one: hashlib.sha256(one.encode()).digest())
    return group in order[: -(-len(order) // _TEST_SHARE)]


def _parts(names: Sequence[str]) -> list[Part]:
    """The split of each image, determined by the names alone, not by a seed."""
    stems = [Path(name).stem for name in names]
    groups = [_ALIKE.get(stem, stem) for stem in stems]
    distinct = sorted(set(groups))
    return ["test" if _is_test(distinct, group) else "train" for group in groups]


class Library:
    """All cut-outs and backgrounds, by split.

    Args:
        share: as for :func:`folders`.

    Attributes:
        cut_outs: the stamps, class by class.
        backgrounds: the photographs.

    Raises:
        UserError: if a package is missing or has unexpected content.
    """

    def __init__(self, share: Path | None = None) -> None:
        self._stamps, self._resources = folders(share)
        self.cut_outs = self._listed_cut_outs()
        names = [
            f"{file}:{_ACTIVITIES}/{folder}/{name}.webp"
            for file, folder, known in BACKGROUNDS
            for name in known
        ]
        parts = _parts(names)
        self.backgrounds = [Source(n, -1, p) for n, p in zip(names, parts, strict=True)]
        self._check_backgrounds()

    def _check_backgrounds(self) -> None:
        for file in dict.fromkeys(file for file, _, _ in BACKGROUNDS):
            own = [source.name for source in self.backgrounds if source.name.startswith(f"{file}:")]
            required = [name.partition(":")[2] for name in own]
            missing = set(required) - set(_resources(self._resources / file).names())
            if missing:
                raise UserError(
                    f"{self._resources / file} lacks {len(missing)} of {len(required)} images, "
                    f"the first: {min(missing)}. Expected gcompris-qt-data 3.1, as in Debian 12; "
                    "other versions cannot be split in the same way"
                )

    def _listed_cut_outs(self) -> list[Source]:
        found = []
        for label, (kind, folder) in enumerate(CLASSES.items()):
            names = [
                str(path.relative_to(self._stamps))
                for path in sorted((self._stamps / folder).rglob("*.png"))
                if not set(path.relative_to(self._stamps).parts) & set(_NO_PHOTOGRAPHS)
                and path.stem not in _LEFT_OUT
                and not path.stem.endswith("_mirror")
            ]
            if len(names) < _TEST_SHARE:
                raise UserError(
                    f"{self._stamps / folder} has {len(names)} photographs of the class '{kind}'; "
                    f"expected at least {_TEST_SHARE}. Is this tuxpaint-stamps-default, 2022.06.04 "
                    "or later?"
                )
            parts = _parts(names)
            found += [Source(n, label, p) for n, p in zip(names, parts, strict=True)]
        return found

    def content(self, source: Source) -> bytes:
        """An image's file.

        Raises:
            UserError: if it does not exist.
        """
        if source.label >= 0:
            return (self._stamps / source.name).read_bytes()
        file, _, name = source.name.partition(":")
        return _resources(self._resources / file).read(name)

    @functools.cache  # noqa: B019 - a library lives as long as its process
    def cut_out(self, source: Source) -> Pixels:
        """A stamp as uint8 RGBA, cropped to its visible part, at most 320 px long."""
        pixels = decode_cut_out(self.content(source), source.name)
        solid = pixels[..., 3] > 127
        if not solid.any():
            raise UserError(f"{source.name} is fully transparent; expected a cut-out")
        rows, columns = np.flatnonzero(solid.any(1)), np.flatnonzero(solid.any(0))
        pixels = pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        return _at_most(pixels, max(pixels.shape[:2]), _LARGEST_CUT_OUT)

    @functools.cache  # noqa: B019
    def background(self, source: Source) -> Pixels:
        """A photograph as uint8 RGB, its short side at most 512 px."""
        pixels = decode_image(self.content(source), source.name)
        return _at_most(pixels, min(pixels.shape[:2]), _LARGEST_BACKGROUND)

    def write_list(self, path: Path) -> None:
        """Writes the split and SHA-256 of each image, as JSON."""
        listed: dict[str, dict[str, dict[str, str]]] = {}
        for kind, sources in (("cut_outs", self.cut_outs), ("backgrounds", self.backgrounds)):
            for source in sources:
                digest = hashlib.sha256(self.content(source)).hexdigest()
                listed.setdefault(source.part, {}).setdefault(kind, {})[source.name] = digest
        path.write_text(json.dumps(listed, indent=1, sort_keys=True) + "\n")


@functools.cache
def _resources(path: Path) -> RccFile:
    return RccFile(path)


def _at_most(pixels: Pixels, side: int, largest: int) -> Pixels:
    """Scaled down so that ``side`` becomes at most ``largest``."""
    if side <= largest:
        return pixels
    height, width = (max(1, length * largest // side) for length in pixels.shape[:2])
    return scaled(Image.fromarray(pixels), (width, height), Image.Resampling.BOX)
