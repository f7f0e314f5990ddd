"""The set of photographs: its parts are apart, its masks exact, and it is the same every time."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from intl_transfer.cli import main
from intl_transfer.data import photo_cutouts, photo_sources
from intl_transfer.data.detection_contents import open_set
from intl_transfer.data.detection_sets import standard_sets
from intl_transfer.data.photo_cutouts import (
    CLASSES,
    PHOTO_CUTOUTS,
    PhotoSpec,
    library,
    render_object,
    render_scene,
    render_unlabeled,
)
from intl_transfer.errors import UserError

_ROOTS = [photo_sources.SHARE / place for place in photo_sources.PACKAGES.values()]
needs_photographs = pytest.mark.skipif(
    not all(root.is_dir() for root in _ROOTS),
    reason=f"needs the Debian packages {' and '.join(photo_sources.PACKAGES)}",
)
TINY = PhotoSpec(
    objects_train=16,
    objects_val=8,
    scenes_train=8,
    scenes_val=5,
    unlabeled=6,
    crowd_fraction=0.4,
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return PHOTO_CUTOUTS.make(tmp_path_factory.mktemp("photos") / "photo_cutouts", TINY)


def digests(pixels: np.ndarray) -> set[str]:
    """Of an image, and of its mirror image: a twin that was turned over is the same photograph."""
    return {
        hashlib.sha256(np.ascontiguousarray(one).tobytes()).hexdigest()
        for one in (pixels, pixels[:, ::-1])
    }


class Spy:
    """In place of the library: notes every image that is taken out of it."""

    def __init__(self, real):
        self._real, self.cut_outs, self.backgrounds = real, real.cut_outs, real.backgrounds
        self.taken: set[str] = set()
        self._known: dict[int, set[str]] = {}

    def cut_out(self, source):
        return self._noted(self._real.cut_out(source))

    def background(self, source):
        return self._noted(self._real.background(source))

    def _noted(self, pixels):
        if id(pixels) not in self._known:  # the library keeps its arrays
            self._known[id(pixels)] = digests(pixels)
        self.taken |= self._known[id(pixels)]
        return pixels


@needs_photographs
def test_nothing_that_is_trained_on_is_in_a_test_image(monkeypatch):
    """By the pixels that are composed, not by what the parts are called."""
    spy = Spy(library())
    monkeypatch.setattr(photo_cutouts, "library", lambda: spy)

    def taken(render, count):
        spy.taken = set()
        for index in range(count):
            render(index)
        return spy.taken

    spec = PhotoSpec(object_size=32, scene_size=64, crowd_fraction=0.2)
    seen = taken(lambda i: render_unlabeled(spec, i), 250)
    seen |= taken(lambda i: render_object(spec, "train", i), 250)
    seen |= taken(lambda i: render_scene(spec, "train", i), 80)
    tested = taken(lambda i: render_object(spec, "val", i), 200)
    tested |= taken(lambda i: render_scene(spec, "val", i), 80)
    assert seen.isdisjoint(tested)
    # Nearly all images were drawn, each counted with its mirror image: the test would notice.
    everything = len(spy.cut_outs) + len(spy.backgrounds)
    assert len(seen) + len(tested) > 2 * 0.95 * everything


@needs_photographs
def test_the_parts_share_no_file_and_no_twin(tiny):
    """By the files' hashes as the list has them, computed again; and by likeness of the pixels."""
    listed = json.loads((tiny / "sources.json").read_text())
    for kind in ("cut_outs", "backgrounds"):
        hashes = {part: set(listed[part][kind].values()) for part in ("train", "test")}
        assert hashes["train"].isdisjoint(hashes["test"])
        assert all(len(hashes[part]) == len(listed[part][kind]) for part in hashes)
    for name, digest in listed["test"]["cut_outs"].items():
        content = (_ROOTS[0] / name).read_bytes()
        assert hashlib.sha256(content).hexdigest() == digest
    small: dict[str, list[np.ndarray]] = {"train": [], "test": []}
    for source in library().cut_outs:
        image = Image.fromarray(library().cut_out(source)).convert("RGBa").convert("RGBA")
        gray = np.asarray(image.convert("LA").resize((24, 24), Image.Resampling.BOX), float)
        small[source.part].append(gray[..., 0] * gray[..., 1] / 255)
    normed = {
        part: np.stack([(g - g.mean()) / g.std() for g in found]) for part, found in small.items()
    }
    train, test = (normed[part].reshape(-1, 24 * 24) for part in ("train", "test"))
    mirrored = normed["test"][:, :, ::-1].reshape(-1, 24 * 24)
    likeness = np.maximum(train @ test.T, train @ mirrored.T) / (24 * 24)
    assert likeness.max() < 0.97  # recolored and mirrored twins have 0.98 and more


@needs_photographs
def test_every_class_is_in_both_parts():
    counts = {part: [0] * len(CLASSES) for part in ("train", "test")}
    for source in library().cut_outs:
        counts[source.part][source.label] += 1
    assert min(counts["train"]) >= 7
    assert min(counts["test"]) >= 4
    assert [100 * c // (c + d) for c, d in zip(*counts.values(), strict=True)] == pytest.approx(
        [66] * 8, abs=4
    )


@needs_photographs
def test_masks_are_the_visible_pixels(monkeypatch):
    """Whose color weighs most in a pixel, by real arithmetic, is whose pixel it is."""
    laid: list[photo_cutouts._Piece] = []
    real = photo_cutouts._blend
    monkeypatch.setattr(
        photo_cutouts, "_blend", lambda image, piece: (laid.append(piece), real(image, piece))
    )
    differing = total = 0
    for index in range(16):
        laid.clear()
        scene = render_scene(TINY, "train", index)
        assert sum(thing.mask.astype(int) for thing in scene.objects).max() <= 1
        assert [thing.iscrowd for thing in scene.objects[1:]] == [False] * len(scene.objects[1:])
        first = len(laid) - len(scene.objects) + 1  # pieces of the first object: many, of a crowd
        assert (first >= 6) == scene.objects[0].iscrowd
        weights = np.zeros((len(scene.objects) + 1, 128, 128))
        weights[0] = 1  # the background's
        soft = np.zeros((128, 128), dtype=bool)
        for place, piece in enumerate(laid):
            alpha = np.zeros((128, 128))
            alpha[piece.place] = piece.pixels[..., 3] / 255
            weights *= 1 - alpha
            weights[1 + max(0, place - first + 1)] += alpha
            soft |= (alpha > 0) & (alpha < 1)
        owner = weights.argmax(0)
        for number, thing in enumerate(scene.objects, 1):
            assert thing.mask.sum() >= 40
            assert 1 / 3 <= thing.visible <= 1
            wrong = thing.mask != (owner == number)
            assert not (wrong & ~soft).any()
            differing, total = differing + wrong.sum(), total + thing.mask.sum()
    assert differing < 0.01 * total  # seams of two or more that are all half transparent


@needs_photographs
def test_both_layouts_and_the_sets_for_classification(tiny):
    sets = standard_sets(tiny.parent)
    for split, voc, count in (("train", "trainval", 8), ("val", "test", 5)):
        one, other = (
            open_set(sets[f"photo_cutouts_{name}"]) for name in (f"coco_{split}", f"voc_{voc}")
        )
        assert (one.problems, other.problems) == ([], [])
        assert one.objects == other.objects
        assert len(one.images) == count
        api = COCO(str(tiny / "coco" / "annotations" / f"instances_{split}.json"))
        for index, number in enumerate(sorted(api.imgs)):
            scene = render_scene(TINY, split, index)
            for truth, found in zip(
                scene.objects, api.loadAnns(api.getAnnIds(number)), strict=True
            ):
                assert (api.annToMask(found).astype(bool) == truth.mask).all()
                assert found["category_id"] == truth.label + 1
    assert len(list((tiny / "unlabeled" / "images").glob("*.png"))) == 6
    for split, count in (("train", 16), ("val", 8)):
        folder = tiny / "classification" / split
        assert {path.name for path in folder.iterdir()} == set(CLASSES)
        assert len(list(folder.glob("*/*.png"))) == count


SOURCES = "3547064f99e8474e27065ddd24656931bd0e4372c0505c2967a4dd3bca9423a4"
# Pillow 12.3.0 made these pixels by single calls, whose order of passes was that of `scaled`.
GOLDEN = "c4164b4e3363adeb7a318ac40e90db5273a5dc09f8ee4d750b46527851ecce32"


@needs_photographs
def test_the_same_pixels_on_every_machine():
    digest = hashlib.sha256()
    for source in (*library().cut_outs, *library().backgrounds):
        digest.update(library().content(source))
    if digest.hexdigest() != SOURCES:
        pytest.skip("the packages are of other versions than those that were recorded")
    digest = hashlib.sha256()
    for index in range(8):
        digest.update(render_object(PhotoSpec(), "train", index)[0].tobytes())
        digest.update(render_unlabeled(PhotoSpec(), index).tobytes())
    for index in range(4):
        scene = render_scene(PhotoSpec(crowd_fraction=0.5), "val", index)
        digest.update(scene.image.tobytes())
        for thing in scene.objects:
            digest.update(thing.mask.tobytes())
    assert digest.hexdigest() == GOLDEN


def test_missing_packages_are_one_line_with_the_command(tmp_path, capsys):
    (tmp_path / "share" / "tuxpaint" / "stamps").mkdir(parents=True)
    arguments = ["data", "photo-cutouts", "--out", str(tmp_path / "out")]
    try:
        assert main([*arguments, "--share", str(tmp_path / "share")]) == 2
    finally:
        photo_cutouts.use_share(None)
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "apt-get install --no-install-recommends gcompris-qt-data" in error
    assert "tuxpaint" not in error
    assert not (tmp_path / "out").exists()


def test_options_of_the_other_set_are_refused(tmp_path, capsys):
    assert main(["data", "shapes", "--out", str(tmp_path / "s"), "--unlabeled", "3"]) == 2
    assert "--unlabeled: not an option of shapes" in capsys.readouterr().err
    with pytest.raises(UserError, match="photo-cutouts: unlabeled is 0; expected at least 1"):
        PhotoSpec(unlabeled=0)
