from __future__ import annotations

import json
import re

import pytest
from PIL import Image

from intl_transfer.cli import main
from intl_transfer.data.annotations import AnnotatedImage, Contents
from intl_transfer.data.detection_contents import count_note, open_set
from intl_transfer.data.detection_roles import seen_in_training
from intl_transfer.data.detection_sets import custom_sets, standard_sets
from intl_transfer.data.shapes import CLASSES, ShapesSpec, make_shapes
from intl_transfer.errors import UserError
from tests.data.photographs import CUT_OUTS, compose, needs_stamps

BLOCK = {
    "photos_coco": {"LAYOUT": "coco", "JSON": "photos/coco.json", "IMAGES": "photos/JPEGImages"},
    "photos_voc": {"LAYOUT": "voc", "FOLDER": "photos", "SPLIT": "train"},
}
VOC = {"LAYOUT": "voc", "FOLDER": "x", "SPLIT": "y"}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    spec = ShapesSpec(
        objects_train=8, objects_val=8, scenes_train=6, scenes_val=3, crowd_fraction=0.5
    )
    make_shapes(root / "shapes", spec)
    return root


def test_both_layouts_of_the_embedded_set_tell_the_same(shapes):
    sets = standard_sets(shapes)
    coco, voc = (open_set(sets[f"shapes_{name}"]) for name in ("coco_train", "voc_trainval"))
    assert (coco.problems, voc.problems) == ([], [])
    assert coco.classes == voc.classes == CLASSES
    assert coco.objects == voc.objects
    assert len(coco.images) == len(voc.images) == 6
    for key, picture in coco.images.items():
        other = next(k for k, p in voc.images.items() if p.file.name == picture.file.name)
        assert (picture.width, picture.height) == (voc.images[other].width, 128)
        ours, theirs = (
            sorted((CLASSES[a.label], a.box) for a in found if not a.ignored)
            for found in (coco.annotations.get(key, []), voc.annotations[other])
        )
        assert set(theirs) <= set(ours)
    crowds = [a for a in coco.all_annotations() if isinstance(a.segmentation, dict)]
    assert crowds
    assert all(crowd.ignored for crowd in crowds)


def test_standard_sets_know_how_many_images_were_published(tmp_path):
    known = {name: one.known_images for name, one in standard_sets(tmp_path).items()}
    assert known["coco_2017_train"] == 118_287
    assert known["coco_2017_val"] == 5_000
    assert known["voc_2007_trainval"] + known["voc_2012_trainval"] == 5_011 + 11_540
    assert known["voc_2007_test"] == 4_952


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"a": {"LAYOUT": "yolo"}}, "a: LAYOUT is 'yolo'; expected coco or voc"),
        ({"a": 3}, "a: LAYOUT is None"),
        ({"a": {"LAYOUT": "coco", "JSON": "x"}}, "a: IMAGES must be given"),
        ({"a": {"LAYOUT": "voc"}}, "a: FOLDER and SPLIT must be given"),
        ({"a": {"LAYOUT": "voc", "FOLDER": "x", "SPLIT": "y", "YAER": 1}}, "no key YAER.*'YEAR'"),
        ({"a": {"LAYOUT": "voc", "FOLDER": "x", "SPLIT": "y", "YEAR": 1}}, "YEAR is 1; expected"),
        ({"a": {"LAYOUT": "coco", "JSON": "x", "IMAGES": "y", "CLASSES": []}}, r"CLASSES is \[\]"),
        ({"a": {**VOC, "CLASSES": "cat"}}, "CLASSES is 'cat'; expected a list of names"),
        ({"a": {**VOC, "CLASSES": ["cat", "cat"]}}, "once"),
        ({"a": {**VOC, "CLASSES": [1]}}, r"CLASSES is \[1\]"),
    ],
)
def test_blocks_that_cannot_be_understood(tmp_path, block, message):
    with pytest.raises(UserError, match=f"my.yaml: CUSTOM_DATASETS.*{message}"):
        custom_sets(block, tmp_path, "my.yaml")


@needs_stamps
def test_sets_of_ones_own_need_no_class_names(tmp_path):
    compose(tmp_path)
    found = {name: open_set(one) for name, one in custom_sets(BLOCK, tmp_path, "the test").items()}
    assert [contents.problems for contents in found.values()] == [[], []]
    assert found["photos_coco"].classes == tuple(CUT_OUTS)  # in the order of the json's ids
    assert found["photos_voc"].classes == tuple(sorted(CUT_OUTS))
    assert sum(found["photos_coco"].objects.values()) > sum(found["photos_voc"].objects.values())
    wrong = {"photos_coco": {**BLOCK["photos_coco"], "CLASSES": ["bird", "tiger"]}}
    (one,) = custom_sets(wrong, tmp_path, "the test").values()
    assert "the configuration says bird, tiger" in open_set(one).problems[0]


def _broken(content, kind):
    first = content["annotations"][0]
    if kind == "class":
        first["category_id"] = 77
    elif kind == "box":
        first["bbox"] = [1, 2, float("nan"), 4]
    elif kind == "outside":
        for annotation in content["annotations"][:2]:
            annotation["bbox"] = [500, 10, 20, 20]
    elif kind == "image":
        content["images"][0]["file_name"] = "gone.jpg"
    elif kind == "no categories":
        del content["categories"]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("class", "annotation 1: category_id 77 is not among the categories"),
        ("box", "annotation 1: bbox is"),
        ("outside", "lies outside its image 000001.jpg (128 x 128); correct or remove the "),
        ("outside", "(1 more of this kind)"),
        ("image", "names 1 image(s) that"),
        ("no categories", "is not a COCO annotation file: categories is nothing"),
    ],
)
def test_the_doctor_names_what_is_wrong(shapes, tmp_path, monkeypatch, capsys, kind, message):
    source = standard_sets(shapes)["shapes_coco_train"]
    content = json.loads(source.annotations.read_text())
    _broken(content, kind)
    (tmp_path / "broken.json").write_text(json.dumps(content))
    config = tmp_path / "my.yaml"
    block = {"LAYOUT": "coco", "JSON": str(tmp_path / "broken.json"), "IMAGES": str(source.images)}
    config.write_text(json.dumps({"CUSTOM_DATASETS": {"mine": block}}))
    monkeypatch.chdir(tmp_path)
    assert main(["doctor", "--datasets", str(config)]) == 1
    assert message in capsys.readouterr().out


def test_the_doctor_opens_and_draws_what_is_right(shapes, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(shapes))
    arguments = ["doctor", "--datasets", "shapes", "--sheets", str(tmp_path / "sheets")]
    assert main(arguments) == 0
    assert capsys.readouterr().out.count("ok") >= 4
    with Image.open(tmp_path / "sheets" / "dataset-shapes_coco_train.png") as sheet:
        assert sheet.size == (1280, 2 * 336)
        # Boxes and masks have colors that no photograph of the set has.
        colors = {color for _, color in sheet.convert("RGB").getcolors(1 << 20)}
        assert (0, 158, 96) in colors
    assert main([*arguments, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [one["images"] for one in report] == [6, 3, 6, 3]
    assert main(["doctor", "--datasets", "coco,voc_2007_test"]) == 1
    out = capsys.readouterr().out
    assert out.count("is missing (looked for") == 3
    assert main(["doctor", "--datasets", "vco"]) == 2
    assert "Did you mean 'voc'" in capsys.readouterr().err


def test_the_doctor_decodes_a_sample(shapes, tmp_path, monkeypatch, capsys):
    import shutil

    shutil.copytree(shapes, tmp_path / "data")
    folder = tmp_path / "data" / "shapes" / "coco" / "val"
    first, second = sorted(folder.iterdir())[:2]
    first.write_bytes(first.read_bytes()[:300])
    Image.new("RGB", (64, 32)).save(second)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "data"))
    arguments = ["doctor", "--datasets", "shapes_coco_val", "--sheets", str(tmp_path)]
    assert main(arguments) == 1
    out = capsys.readouterr().out
    assert f"{first.name} cannot be read as an image" in out
    assert f"{second.name} is 64 x 32, the annotations say 128 x 128" in out


def test_a_part_of_a_published_set_is_called_one(shapes):
    import dataclasses

    one = dataclasses.replace(standard_sets(shapes)["shapes_coco_val"], known_images=5_000)
    note = count_note(one, open_set(one))
    assert note == "shapes_coco_val has 3 images; the published set has 5,000"


def test_voc_annotations_that_cannot_be(shapes, tmp_path):
    import dataclasses
    import shutil

    one = standard_sets(shapes)["shapes_voc_test"]
    shutil.copytree(one.annotations, tmp_path / "Annotations")
    one = dataclasses.replace(one, annotations=tmp_path / "Annotations")
    names = one.listing.read_text().split()
    files = [tmp_path / "Annotations" / f"{name}.xml" for name in names]
    text = files[0].read_text()
    assert open_set(one).problems == []
    for change, message in (
        (lambda t: t.replace("<name>", "<name>un", 1), "no class 'un"),
        (lambda t: t[: len(t) // 2], "is not a VOC annotation"),
        (lambda t: t.replace("<xmin>", "<xmin>9", 1), "ends before it begins"),
        (lambda t: re.sub(r"<x(m..)>", r"<x\1>9", t), "lies outside its image (128 x 128)"),
        (
            lambda t: t.replace("xmax", "xmux"),
            r"is not a VOC annotation (no xmax in object 1 (hexagon))",
        ),
    ):
        files[0].write_text(change(text))
        assert message in open_set(one).problems[0]
    files[0].unlink()
    assert f"lacks, the first: {names[0]}.xml" in open_set(one).problems[0]


def test_training_images_that_are_tested_on_are_counted(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "link").symlink_to("set")

    def contents(folder, *names):
        return Contents(images={n: AnnotatedImage(tmp_path / folder / n, 9, 9) for n in names})

    test = {"own": contents("link", "b.jpg", "c.jpg"), "other": contents("set", "d.jpg")}
    train = {"t": contents("set", "a.jpg", "b.jpg"), "u": contents("other", "b.jpg", "c.jpg")}
    (line,) = seen_in_training(train, test)
    assert line.startswith("1 of the 2 images of 'own', which is tested on, are trained on ('t')")
