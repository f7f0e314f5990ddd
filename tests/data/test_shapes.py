from __future__ import annotations

import hashlib
import json
import shutil
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from intl_transfer.cli import main
from intl_transfer.data.polygons import mask_to_polygons
from intl_transfer.data.shapes import (
    CLASSES,
    ShapesSpec,
    contact_sheet,
    is_complete,
    make_shapes,
    render_object,
    render_scene,
)
from intl_transfer.errors import UserError

TINY = ShapesSpec(
    objects_train=16, objects_val=8, scenes_train=12, scenes_val=6, crowd_fraction=0.4
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return make_shapes(tmp_path_factory.mktemp("shapes") / "shapes", TINY)


def decode(segmentation, height, width):
    runs = coco_mask.frPyObjects(segmentation, height, width)
    return coco_mask.decode(coco_mask.merge(runs) if isinstance(runs, list) else runs).astype(bool)


@settings(max_examples=200, deadline=None)
@given(hnp.arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12))))
def test_polygons_decode_to_exactly_the_mask(mask):
    polygons = mask_to_polygons(mask) if mask.any() else []
    assert all(len(p) >= 8 for p in polygons)
    assert not polygons or (decode(polygons, *mask.shape) == mask).all()


def test_polygons_of_holes_and_diagonals():
    ring = np.ones((7, 7), dtype=bool)
    ring[2:5, 2:5] = False
    ring[3, 3] = True  # an island in the hole
    diagonal = np.eye(5, dtype=bool)
    for mask in (ring, diagonal, ~diagonal):
        assert (decode(mask_to_polygons(mask), *mask.shape) == mask).all()


GOLDEN = "56e5b16df4e5d91034a98e18b482573f850c4ea31fa24bf41bb6ef3e30ac92e7"


def test_pixels_are_the_same_on_every_machine():
    digest = hashlib.sha256()
    for index in range(8):
        image, label = render_object(ShapesSpec(), "train", index)
        assert label == index
        digest.update(image.tobytes())
    for index in range(4):
        scene = render_scene(ShapesSpec(crowd_fraction=0.5), "val", index)
        digest.update(scene.image.tobytes())
        for thing in scene.objects:
            digest.update(thing.mask.tobytes())
    assert digest.hexdigest() == GOLDEN


def test_an_image_does_not_depend_on_the_counts():
    small, large = ShapesSpec(objects_train=8), ShapesSpec(objects_train=4000, scenes_train=9)
    assert (render_object(small, "train", 5)[0] == render_object(large, "train", 5)[0]).all()
    assert (render_scene(small, "val", 2).image == render_scene(large, "val", 2).image).all()
    other = ShapesSpec(seed=1)
    assert (render_object(small, "train", 5)[0] != render_object(other, "train", 5)[0]).any()
    assert (render_object(small, "train", 5)[0] != render_object(small, "val", 5)[0]).any()


def test_scenes_are_as_described():
    counts, crowds = set(), 0
    for index in range(60):
        scene = render_scene(TINY, "train", index)
        assert scene.image.shape == (128, 128, 3)
        crowds += sum(thing.iscrowd for thing in scene.objects)
        counts.add(sum(not thing.iscrowd for thing in scene.objects))
        assert sum(thing.mask.astype(int) for thing in scene.objects).max() <= 1
        for thing in scene.objects:
            assert thing.visible >= 1 / 3
            assert thing.mask.any()
    assert counts == {2, 3, 4, 5}
    assert 10 < crowds < 40


def test_coco_layout(tiny):
    for split, count in (("train", 12), ("val", 6)):
        api = COCO(str(tiny / "coco" / "annotations" / f"instances_{split}.json"))
        assert [c["name"] for c in api.loadCats(api.getCatIds())] == list(CLASSES)
        assert len(api.imgs) == count
        for index, (number, info) in enumerate(sorted(api.imgs.items())):
            scene = render_scene(TINY, split, index)
            with Image.open(tiny / "coco" / split / info["file_name"]) as image:
                pixels = np.asarray(image.convert("RGB")).astype(int)
            # JPEG at quality 95 without chroma subsampling.
            assert np.abs(pixels - scene.image).mean() < 4
            annotations = api.imgToAnns[number]
            assert len(annotations) == len(scene.objects)
            for annotation, thing in zip(annotations, scene.objects, strict=True):
                mask = api.annToMask(annotation).astype(bool)
                assert (mask == thing.mask).all()
                assert annotation["area"] == mask.sum()
                assert annotation["iscrowd"] == thing.iscrowd
                assert isinstance(annotation["segmentation"], dict) == thing.iscrowd
                encoded = coco_mask.encode(np.asfortranarray(thing.mask))
                assert annotation["bbox"] == coco_mask.toBbox(encoded).tolist()


def test_voc_layout_agrees_with_coco(tiny):
    for split, name, count in (("train", "trainval", 12), ("val", "test", 6)):
        ids = (tiny / "voc" / "ImageSets" / "Main" / f"{name}.txt").read_text().split()
        assert len(ids) == count
        content = json.loads(
            (tiny / "coco" / "annotations" / f"instances_{split}.json").read_text()
        )
        for number in ids:
            coco_file = tiny / "coco" / split / f"{number}.jpg"
            voc_file = tiny / "voc" / "JPEGImages" / f"{number}.jpg"
            assert coco_file.read_bytes() == voc_file.read_bytes()
            tree = ElementTree.parse(tiny / "voc" / "Annotations" / f"{number}.xml")
            things = tree.findall("object")
            twins = [a for a in content["annotations"] if a["image_id"] == int(number)]
            assert len(things) == len(twins)
            for thing, twin in zip(things, twins, strict=True):
                assert thing.findtext("name") == CLASSES[twin["category_id"] - 1]
                x, y, w, h = twin["bbox"]
                box = [int(thing.findtext(f"bndbox/{k}")) for k in ("xmin", "ymin", "xmax", "ymax")]
                assert box == [x + 1, y + 1, x + w, y + h]
                assert int(thing.findtext("difficult")) >= twin["iscrowd"]


def test_detectron2_reads_both_layouts(tiny):
    from detectron2.data.datasets import load_coco_json, load_voc_instances

    coco = load_coco_json(
        str(tiny / "coco" / "annotations" / "instances_train.json"),
        str(tiny / "coco" / "train"),
        "tiny",
    )
    voc = load_voc_instances(str(tiny / "voc"), "trainval", list(CLASSES))
    assert len(coco) == len(voc) == 12
    for a, b in zip(coco, voc, strict=True):
        assert [x["category_id"] for x in a["annotations"]] == [
            x["category_id"] for x in b["annotations"]
        ]
        for x, y in zip(a["annotations"], b["annotations"], strict=True):
            left, top, width, height = x["bbox"]
            assert y["bbox"] == [left, top, left + width, top + height]


def test_imagefolder_layout(tiny):
    from torchvision.datasets import ImageFolder

    for split, count in (("train", 16), ("val", 8)):
        dataset = ImageFolder(str(tiny / "classification" / split))
        assert len(dataset) == count
        assert sorted(dataset.classes) == sorted(CLASSES)
        assert dataset[0][0].size == (64, 64)


def test_same_seed_same_files(tiny, tmp_path):
    again = make_shapes(tmp_path / "again", TINY)
    names = sorted(p.relative_to(tiny) for p in tiny.rglob("*") if p.is_file())
    assert names == sorted(p.relative_to(again) for p in again.rglob("*") if p.is_file())
    assert all((tiny / name).read_bytes() == (again / name).read_bytes() for name in names)


def test_a_half_written_set_is_not_taken_for_whole(tmp_path, monkeypatch):
    import intl_transfer.data.scenes as scenes

    def fail(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(scenes, "_voc_tree", fail)
        with pytest.raises(KeyboardInterrupt):
            make_shapes(tmp_path / "set", TINY)
    assert list(tmp_path.iterdir()) == []
    root = make_shapes(tmp_path / "set", TINY)
    assert is_complete(root, TINY)
    (root / "COMPLETE.json").unlink()
    assert not is_complete(root)
    with pytest.raises(UserError, match=r"is not empty and has no COMPLETE\.json"):
        make_shapes(root, TINY)
    assert (root / "coco").exists()


def test_another_spec_is_an_error_until_forced(tiny, tmp_path):
    root = tmp_path / "set"
    shutil.copytree(tiny, root)
    other = ShapesSpec(objects_train=8, objects_val=8, scenes_train=1, scenes_val=1, seed=5)
    with pytest.raises(UserError, match=r"seed: 0 instead of 5.*--force"):
        make_shapes(root, other)
    assert is_complete(root, TINY)
    make_shapes(root, other, force=True)
    assert is_complete(root, other)
    assert len(list((root / "coco" / "train").iterdir())) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"objects_train": 0}, "objects_train is 0"),
        ({"scene_size": 8}, "scene_size is 8; expected at least 32"),
        ({"crowd_fraction": 2.0}, "crowd_fraction is 2.0"),
    ],
)
def test_impossible_specs_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        ShapesSpec(**change)


def test_command_line_and_contact_sheet(tmp_path, capsys):
    sizes = ["--objects-train", "8", "--objects-val", "8", "--scenes-train", "2"]
    sheet = tmp_path / "sheet.png"
    arguments = ["data", "shapes", "--out", str(tmp_path / "s"), *sizes, "--scenes-val", "1"]
    assert main([*arguments, "--contact-sheet", str(sheet)]) == 0
    assert "is generated" in capsys.readouterr().out
    with Image.open(sheet) as image:
        assert image.size == (1024, 1280)
    assert main(arguments) == 0
    assert "is already there" in capsys.readouterr().out
    assert main([*arguments, "--seed", "9"]) == 2
    contact_sheet(TINY, sheet)
