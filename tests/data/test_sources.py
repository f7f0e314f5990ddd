from __future__ import annotations

import contextlib
import io
import os
import pickle
import pickletools
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torchvision.datasets import CIFAR10, CIFAR100, ImageFolder
from torchvision.transforms import CenterCrop, Compose, Resize

from intl_transfer.data import cifar, images
from intl_transfer.data.datasets import ViewsDataset
from intl_transfer.data.folders import FolderSource
from intl_transfer.data.images import FORMATS, UnreadableImageError
from intl_transfer.data.roots import located
from intl_transfer.data.shards import TarSource, shard_files
from intl_transfer.data.source import NameTable
from intl_transfer.data.sources import open_source
from intl_transfer.data.views import ViewConfig, build_views
from intl_transfer.errors import UserError
from intl_transfer.evaluation.features import EvaluationImages


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def picture(seed, size=(20, 30)):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "images"
    for label in ("cat", "dog", "émeu"):
        (root / label / "inner").mkdir(parents=True)
        for i in range(4):
            Image.fromarray(picture(i)).save(root / label / f"{label}_{i}.png")
        Image.fromarray(picture(9)).save(root / label / "inner" / "x.PNG")
        (root / label / "notes.txt").write_text("no image")
    return root


def listed(source):
    return [(source.name(i), int(source.labels[i])) for i in range(len(source))]


def test_a_folder_is_listed_as_torchvision_lists_it(folder):
    source, reference = FolderSource(folder), ImageFolder(str(folder))
    assert sorted(listed(source)) == sorted(reference.samples)
    assert list(source.classes) == reference.classes
    assert np.array_equal(source.image(0), picture(0))


def settled(root):
    """Sets the times of all folders back: what was changed just now is listed again anyway."""
    then = time.time_ns() - 10**10
    for parent, _, _ in os.walk(root):
        os.utime(parent, ns=(then, then))


def test_the_list_is_kept_and_a_stale_one_noticed(folder, cache, capsys):
    settled(folder)
    assert FolderSource(folder).listed == 3
    assert f"{folder}: files that are no images, " in (said := capsys.readouterr().out)
    assert said.endswith("are left out: 3 .txt\n")
    again = FolderSource(folder)
    assert again.listed == 0
    assert capsys.readouterr().out == ""
    assert len(again) == 15
    (folder / "dog" / "inner" / "x.PNG").unlink()
    fewer = FolderSource(folder)
    assert fewer.listed == 1  # only the class that changed
    assert len(fewer) == 14
    settled(folder / "dog")
    assert FolderSource(folder).listed == 1
    assert FolderSource(folder).listed == 0
    Image.fromarray(picture(3)).save(folder / "cat" / "new.png")
    (folder / "wolf").mkdir()
    Image.fromarray(picture(3)).save(folder / "wolf" / "new.png")
    more = FolderSource(folder)
    assert more.listed == 2
    assert list(more.classes) == ["cat", "dog", "wolf", "émeu"]
    assert sorted(listed(more)) == sorted(ImageFolder(str(folder)).samples)
    settled(folder / "cat")
    assert FolderSource(folder).listed == 2
    # A class that is gone.
    (folder / "wolf" / "new.png").unlink()
    (folder / "wolf").rmdir()
    assert list(FolderSource(folder).classes) == ["cat", "dog", "émeu"]
    assert FolderSource(folder).listed == 0


@pytest.mark.parametrize("stamps", ["fine", "coarse"])
def test_a_file_that_comes_while_a_folder_is_listed_is_found_later(folder, monkeypatch, stamps):
    """Between its reading and the end of the listing; or with the time that the folder had."""
    settled(folder)
    scandir, late = os.scandir, folder / "cat" / "late.png"

    def slow(path):
        with scandir(path) as entries:
            found = list(entries)
        if Path(path) == late.parent:
            Image.fromarray(picture(5)).save(late)
        return contextlib.nullcontext(found)

    if stamps == "coarse":
        os.utime(late.parent)
        time_of_folder = late.parent.stat().st_mtime_ns
    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", slow)
        assert len(FolderSource(folder)) == 15
    if stamps == "coarse":
        os.utime(late.parent, ns=(time_of_folder, time_of_folder))
    assert len(FolderSource(folder)) == 16


@contextlib.contextmanager
def times_kept(path):
    """As tools do that copy or unpack: what changes gets the time of modification that it had."""
    before = path.stat()
    yield
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_mtime_ns == before.st_mtime_ns


def test_what_changes_under_its_old_time_is_read_again(folder, tmp_path, cache):
    settled(folder)
    FolderSource(folder)
    with times_kept(folder / "cat"):
        (folder / "cat" / "cat_0.png").rename(folder / "cat" / "cat_9.png")
    assert sorted(listed(FolderSource(folder))) == sorted(ImageFolder(str(folder)).samples)
    shard = tmp_path / "a.tar"
    members = {"0.png": png(0), "0.cls": b"3", "1.png": png(1), "1.cls": b"5"}
    _shard(shard, members)
    assert not list((cache / "intl-transfer").glob("shard-*"))  # it may change in this moment
    then = time.time_ns() - 10**10
    os.utime(shard, ns=(then, then))
    assert TarSource(shard).labels.tolist() == [0, 1]
    assert len(list((cache / "intl-transfer").glob("shard-*"))) == 1
    size = shard.stat().st_size
    with times_kept(shard):
        _shard(shard, {**members, "0.cls": b"5", "1.cls": b"3"})
    assert shard.stat().st_size == size
    assert TarSource(shard).labels.tolist() == [1, 0]


def test_every_format_that_is_read_is_listed(tmp_path):
    """By the endings that Pillow has for the formats that are accepted."""
    ours = [end for end, kind in sorted(Image.registered_extensions().items()) if kind in FORMATS]
    named = [end for end in ours if end in images.EXTENSIONS]
    assert {".jfif", ".jpe", ".jp2", ".pbm"} <= set(named)
    encoded = io.BytesIO()
    Image.fromarray(picture(0)).save(encoded, "PNG")
    members = {f"cat/{number}{end}": encoded.getvalue() for number, end in enumerate(named)}
    for name, data in members.items():
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).write_bytes(data)
    assert len(FolderSource(tmp_path / "set")) == len(named)
    assert len(_shard(tmp_path / "a.tar", members)) == len(named)


def test_a_damaged_or_unwritable_cache_does_no_harm(folder, cache, monkeypatch):
    FolderSource(folder)
    (file,) = (cache / "intl-transfer").glob("folder-*.npz")
    file.write_bytes(file.read_bytes()[:100])
    assert len(FolderSource(folder)) == 15
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    assert len(FolderSource(folder)) == 15


def test_folders_without_classes_or_images(tmp_path):
    with pytest.raises(UserError, match=r"no image folder .*looked for"):
        open_source(tmp_path / "absent")
    with pytest.raises(UserError, match=r"no images in class folders \(0 folders\)"):
        open_source(tmp_path)
    Image.fromarray(picture(0)).save(tmp_path / "loose.png")
    with pytest.raises(UserError, match=r"1 images lie in it directly.*put all images into one"):
        open_source(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "bare").mkdir()
    Image.fromarray(picture(0)).save(tmp_path / "full" / "a.png")
    with pytest.raises(UserError, match="no image in class folder 'bare'"):
        open_source(tmp_path)


def test_name_tables_hold_any_name():
    names = ["a/b.png", "", "日本/絵.jpg", b"\xff\xfe.png".decode("utf-8", "surrogateescape")]
    table = NameTable.of(names)
    assert list(table) == names
    assert len(NameTable.of([])) == 0


# Tar shards


def add(archive, name, data):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    archive.addfile(info, io.BytesIO(data))


def png(seed):
    buffer = io.BytesIO()
    Image.fromarray(picture(seed)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def shards(tmp_path):
    root = tmp_path / "shards"
    root.mkdir()
    for shard in range(3):
        with tarfile.open(root / f"train-{shard:04d}.tar", "w") as archive:
            for i in range(5):
                key = shard * 5 + i
                add(archive, f"{key:05d}.png", png(key))
                add(archive, f"{key:05d}.cls", str(key % 11).encode())
                add(archive, f"{key:05d}.json", b"{}")
    return root


@pytest.mark.parametrize("upright", [True, False])
def test_images_lie_the_same_way_for_every_stage(tmp_path, upright):
    """Class folders, shards, crops, centers and detection, by all values of the tag."""
    import detection  # noqa: F401 - prepares Detectron2
    from detection.images import read_as

    folder = tmp_path / "folder" / "cat"
    folder.mkdir(parents=True)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        image = Image.fromarray(np.tile(picture(1), (2, 1, 1)))
        image.save(folder / f"{orientation}.jpg", exif=exif)
    (tmp_path / "shards").mkdir()
    with tarfile.open(tmp_path / "shards" / "a.tar", "w") as archive:
        for file in sorted(folder.iterdir()):
            archive.add(file, f"cat/{file.name}")
    plain = build_views([ViewConfig(32, 1.0, flip=0, jitter=0, grayscale=0, blur=0, solarize=0)])
    seen = []
    for root in ("folder", "shards"):
        source = open_source(tmp_path / root, upright=upright)
        for i, file in enumerate(sorted(folder.iterdir())):
            opened = Image.open(file)
            expected = ImageOps.exif_transpose(opened) if upright else opened
            assert np.array_equal(source.image(i), expected)
            center = EvaluationImages(source, 16)[i][0]
            reference = Compose([Resize(18), CenterCrop(16)])(expected)
            assert np.array_equal(center, reference)
            if upright:
                assert np.array_equal(read_as(str(file), "RGB"), expected)
        for cache in (True, False):
            data = ViewsDataset(source, plain, seed=0, cache=cache)
            seen.append(data.__getitems__([(0, i) for i in range(8)]).views[0])
    assert all(torch.equal(one, seen[0]) for one in seen)


@pytest.mark.parametrize("pattern", ["", "/train-{0000..0002}.tar", "/train-*.tar"])
def test_shards_hold_what_was_put_in(shards, pattern):
    source = open_source(f"{shards}{pattern}")
    assert isinstance(source, TarSource)
    assert len(source) == 15
    assert list(source.classes) == [str(i) for i in range(11)]
    for i in range(15):
        assert np.array_equal(source.image(i), picture(i))
        assert source.labels[i] == i % 11
    assert source.name(7).endswith("train-0001.tar/00007.png")


def test_shards_that_webdataset_wrote(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    with webdataset.ShardWriter(str(tmp_path / "w-%06d.tar"), maxcount=4, verbose=0) as writer:
        for i in range(10):
            writer.write({"__key__": f"k{i:03d}", "png": picture(i), "cls": i % 3})
    source = open_source(tmp_path)
    assert len(source) == 10
    assert sorted(int(source.classes[label]) for label in source.labels) == sorted(
        i % 3 for i in range(10)
    )
    reference = webdataset.WebDataset(
        sorted(str(p) for p in tmp_path.glob("*.tar")), shardshuffle=False
    ).decode("rgb8")
    for i, sample in enumerate(reference):
        assert np.array_equal(source.image(i), sample["png"])
        assert int(source.classes[source.labels[i]]) == sample["cls"]


def _shard(file, members):
    with tarfile.open(file, "w") as archive:
        for name, content in members.items():
            add(archive, name, content)
    return TarSource(file)


def test_webdatasets_keys_end_at_the_first_dot(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as writer:
        for i in range(4):
            writer.write({"__key__": f"d/k{i}", "input.png": picture(i), "cls": i % 3})
    source = TarSource(tmp_path / "a.tar")
    samples = webdataset.WebDataset(str(tmp_path / "a.tar"), shardshuffle=False).decode("rgb8")
    for i, sample in enumerate(samples):
        assert np.array_equal(source.image(i), sample["input.png"])
        assert int(source.classes[source.labels[i]]) == sample["cls"]
    # Others' keys have dots.
    named = {"a.1.png": png(1), "a.1.cls": b"x", "a.2.png": png(2), "a.2.cls": b"y"}
    assert _shard(tmp_path / "b.tar", named).labels.tolist() == [0, 1]


@pytest.mark.parametrize("folder", ["", "train/"])
@pytest.mark.parametrize("bare", ["2.png", "1.mask.png"])
def test_shards_of_which_some_images_have_a_label(tmp_path, folder, bare):
    """They were one class, and every classifier of it right."""
    members = {"0.png": png(0), "0.cls": b"3", "1.png": png(1), "1.cls": b"5", bare: png(2)}
    with pytest.raises(UserError, match=f"1 of 3 images have no class, the first: {folder}{bare}"):
        _shard(tmp_path / "a.tar", {f"{folder}{name}": v for name, v in members.items()})


def test_shards_of_which_some_images_lie_in_folders(tmp_path):
    with pytest.raises(UserError, match=r"1 of 2 images have no class, the first: b\.png"):
        _shard(tmp_path / "a.tar", {"cat/a.png": png(0), "b.png": png(1)})
    assert list(_shard(tmp_path / "b.tar", {"a.png": png(0), "b.png": png(1)}).labels) == [0, 0]


def test_long_labels_are_told_apart(tmp_path):
    members = {f"{i}.png": png(i) for i in range(2)} | {f"{i}.cls": b"a" * 90 + b"%d" % i
                                                        for i in range(2)}  # fmt: skip
    assert _shard(tmp_path / "a.tar", members).labels.tolist() == [0, 1]


def test_shards_with_class_folders(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for label in ("n02", "n01"):
            add(archive, f"./{label}/{label}_1.png", png(1))
    source = TarSource(tmp_path / "a.tar")
    assert list(source.classes) == ["n01", "n02"]
    assert source.labels.tolist() == [1, 0]


TREES = [
    [f"{c}/{year}/{c}.png" for c in ("cat", "dog") for year in (2019, 2020)],
    [f"{c}/images/{c}_0.png" for c in ("n01", "n02")],
    ["cat/0.png", "cat/@eaDir/0.png/THUMB_M.png", "dog/1.png", "dog/.thumbnails/1.png"],
    ["cat/0.png", "dog/1.png", "__MACOSX/cat/0.png", ".ipynb_checkpoints/0.png"],
    ["cat/0.png", "cat/9.heic", "cat/8.JXL", "dog/1.png", "dog/.DS_Store", "dog/7.jxl"],
    ["cat/0.png", "cat/old/1.png"],
    ["train/0.png", "test/1.png"],
]


@pytest.mark.parametrize("names", TREES)
@pytest.mark.parametrize("top", ["", "./", "data/imagenet/"])
def test_a_tree_and_its_shard_are_the_same_data_set(tmp_path, capsys, names, top):
    """Also where the shard has folders around all of it."""
    for name in names:
        (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tree" / name).write_bytes(png(0))
    tree = FolderSource(tmp_path / "tree")
    said = capsys.readouterr().out.replace(str(tmp_path / "tree"), "")
    shard = _shard(tmp_path / "a.tar", {top + name: png(0) for name in names})
    assert capsys.readouterr().out.replace(str(tmp_path / "a.tar"), "") == said
    assert shard.classes == tree.classes
    classes = {
        str(Path(tree.name(i)).relative_to(tmp_path / "tree")): label
        for i, label in enumerate(tree.labels)
    }
    inside = top.removeprefix("./")
    assert dict(listed(shard)) == {
        f"{tmp_path}/a.tar/{inside}{name}": label for name, label in classes.items()
    }


def test_parts_of_a_data_set_are_no_classes_in_shards_either(tmp_path):
    names = [f"{part}/{c}/0.png" for part in ("train", "val") for c in ("cat", "dog")]
    with pytest.raises(
        UserError, match=r"a\.tar: images lie below train, val: parts of a data set"
    ):
        _shard(tmp_path / "a.tar", {name: png(0) for name in names})
    assert _shard(tmp_path / "b.tar", {n: png(0) for n in names[:2]}).classes == ["cat", "dog"]


def test_epochs_of_shards_are_permutations_and_local(tmp_path):
    for shard in range(40):
        with tarfile.open(tmp_path / f"{shard:02d}.tar", "w") as archive:
            for i in range(3):
                add(archive, f"{shard}_{i}.png", png(0))
    source = TarSource(tmp_path)
    one, two = source.epoch_order(0, 0), source.epoch_order(0, 1)
    assert sorted(one) == sorted(two) == list(range(120))
    assert not np.array_equal(one, two)
    assert np.array_equal(one, TarSource(tmp_path).epoch_order(0, 0))
    for first in range(0, 120, 48):  # 16 shards of 3 at a time
        assert len(set(one[first : first + 48] // 3)) == min(16, (120 - first) // 3)


def test_bad_shards_are_named(shards):
    with pytest.raises(UserError, match=r"train-0003\.tar \(1 of 4 are missing\)"):
        shard_files(f"{shards}/train-{{0000..0003}}.tar")
    with pytest.raises(UserError, match="no tar shard"):
        shard_files(f"{shards}/valid-*.tar")
    file = shards / "train-0001.tar"
    file.write_bytes(file.read_bytes()[: 512 + 100])
    with pytest.raises(UserError, match=r"train-0001\.tar is (cut off|not a whole)"):
        open_source(shards)
    file.write_bytes(b"no tar" * 400)
    with pytest.raises(UserError, match=r"train-0001\.tar is not a whole, uncompressed tar file"):
        open_source(shards)


def test_a_damaged_image_in_a_shard_is_named(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        add(archive, "good.png", png(0))
        add(archive, "bad.png", png(0)[:200])
    with pytest.raises(UnreadableImageError, match=r"a\.tar/bad\.png cannot be read"):
        TarSource(tmp_path).image(1)


# CIFAR


def as_python_2(data):
    """The same pickle with its short strings as Python 2 wrote them, as bytes."""
    data = bytearray(data)
    for opcode, argument, position in pickletools.genops(bytes(data)):
        words = ("data", "label", "batch", "fine_", "class ")
        if opcode.name == "BINUNICODE" and argument.startswith(words):
            data[position] = ord("T")
    return bytes(data)


def write_cifar(root, hundred, binary, count=6):
    rng = np.random.default_rng(0)
    classes = 100 if hundred else 10
    folder = {
        (False, False): "cifar-10-batches-py",
        (True, False): "cifar-100-python",
        (False, True): "cifar-10-batches-bin",
        (True, True): "cifar-100-binary",
    }[hundred, binary]
    folder = root / folder
    folder.mkdir(parents=True)
    parts = (
        ["train", "test"] if hundred else [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    )
    for part in parts:
        data = rng.integers(0, 256, (count, 3072), dtype=np.uint8)
        labels = rng.integers(0, classes, count).tolist()
        if binary:
            coarse = np.zeros((count, 1 if hundred else 0), np.uint8)
            table = np.hstack([coarse, np.array(labels, np.uint8)[:, None], data])
            (folder / f"{part}.bin").write_bytes(table.tobytes())
        else:
            key = "fine_labels" if hundred else "labels"
            batch = {"data": data, key: labels, "batch_label": "a part"}
            (folder / part).write_bytes(as_python_2(pickle.dumps(batch, protocol=2)))
    names = [f"class {i}" for i in range(classes)]
    if binary:
        name = "fine_label_names.txt" if hundred else "batches.meta.txt"
        (folder / name).write_text("\n".join(names) + "\n\n")
    else:
        key = "fine_label_names" if hundred else "label_names"
        name = "meta" if hundred else "batches.meta"
        (folder / name).write_bytes(as_python_2(pickle.dumps({key: names}, protocol=2)))
    return folder


@pytest.mark.parametrize("hundred", [False, True])
def test_cifar_is_read_as_torchvision_reads_it(tmp_path, monkeypatch, hundred):
    write_cifar(tmp_path / "py", hundred, binary=False)
    write_cifar(tmp_path / "bin", hundred, binary=True)
    kind = CIFAR100 if hundred else CIFAR10
    # The files are not the real ones, whose checksums torchvision knows.
    monkeypatch.setattr(kind, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    for part in ("train", "test"):
        reference = kind(str(tmp_path / "py"), train=part == "train")
        for flavour in ("py", "bin"):
            source = open_source(f"{tmp_path / flavour}:{part}")
            assert len(source) == len(reference)
            assert list(source.classes) == reference.classes
            assert source.labels.tolist() == reference.targets
            for i in range(len(source)):
                assert np.array_equal(source.image(i), np.asarray(reference[i][0]))


@pytest.mark.parametrize("beside", ["folders", "shard"])
def test_cifar_beside_other_images_is_not_taken_for_all(tmp_path, beside):
    folder = write_cifar(tmp_path, False, binary=False)
    if beside == "folders":
        _picture(tmp_path / "cat" / "a.png")
    else:
        _shard(tmp_path / "a.tar", {"cat/a.png": png(0)})
    with pytest.raises(UserError, match=r"holds CIFAR's or MNIST's files beside other images"):
        open_source(tmp_path)
    assert len(open_source(folder).classes) == 10


def test_cifar_files_run_no_code(tmp_path):
    folder = write_cifar(tmp_path, False, binary=False)

    class Harm:
        def __reduce__(self):
            return os.system, ("touch /tmp/never",)

    (folder / "data_batch_2").write_bytes(pickle.dumps({"data": Harm()}))
    with pytest.raises(UserError, match=r"data_batch_2 is not a CIFAR file.*posix\.system"):
        open_source(tmp_path)


def test_cifar_files_that_are_damaged_or_missing(tmp_path):
    folder = write_cifar(tmp_path, False, binary=False)
    good = (folder / "data_batch_3").read_bytes()
    (folder / "data_batch_3").write_bytes(good[:500])
    with pytest.raises(UserError, match=r"data_batch_3 is not a CIFAR file, or damaged"):
        open_source(tmp_path)
    (folder / "data_batch_3").unlink()
    with pytest.raises(UserError, match=r"data_batch_3 cannot be read \(No such file"):
        open_source(tmp_path)
    (folder / "data_batch_3").write_bytes(pickle.dumps({b"data": np.zeros((2, 9), np.uint8)}))
    with pytest.raises(UserError, match=r"data_batch_3: expected 'data' of uint8"):
        open_source(tmp_path)
    binary = write_cifar(tmp_path / "b", True, binary=True)
    (binary / "train.bin").write_bytes(b"\0" * 3075)
    with pytest.raises(UserError, match=r"train\.bin has 3075 bytes.*cut off"):
        open_source(tmp_path / "b")


def test_where_cifar_may_lie(tmp_path):
    folder = write_cifar(tmp_path, True, binary=False)
    assert cifar.find(tmp_path) == cifar.find(folder) == folder
    assert cifar.find(tmp_path / "other") is None


def test_a_folder_with_both_cifars_is_not_taken_for_one_of_them(tmp_path):
    """As torchvision's root has them after both were fetched; CIFAR-10 was taken for CIFAR-100."""
    for hundred in (False, True):
        write_cifar(tmp_path, hundred, binary=False)
    for part in ("", ":test"):
        with pytest.raises(UserError, match=r"cifar-10-batches-py and cifar-100-python; give the"):
            open_source(f"{tmp_path}{part}")
    assert len(open_source(tmp_path / "cifar-100-python").classes) == 100
    assert len(open_source(f"{tmp_path / 'cifar-10-batches-py'}:test").classes) == 10
    (tmp_path / "two" / "fashion-mnist").mkdir(parents=True)
    for binary in (False, True):  # the same images in two forms
        write_cifar(tmp_path / "two", True, binary)
    assert len(open_source(tmp_path / "two").classes) == 100
    (tmp_path / "two" / "fashion-mnist" / "train-images-idx3-ubyte").write_bytes(b"")
    with pytest.raises(UserError, match="holds CIFAR's or MNIST's files beside other images"):
        open_source(tmp_path / "two")


@pytest.mark.parametrize("part", ["train", "test"])
def test_what_has_no_parts_is_not_taken_whole_for_one(folder, shards, tmp_path, part):
    """The test images were those of the training, and all of them known."""
    for place in (folder, shards, f"{shards}/train-*.tar"):
        with pytest.raises(UserError, match=rf"^data\.test=.*':{part}' means a part of CIFAR's"):
            open_source(f"{place}:{part}", key="data.test")
    folder.rename(tmp_path / f"set:{part}")  # a name may end so
    assert len(open_source(tmp_path / f"set:{part}").classes) == 3


# Subsets


def test_subsets_by_class(folder, tmp_path):
    listing = tmp_path / "classes.txt"
    listing.write_text("# two of three\némeu\n\ncat\n")
    source = open_source(folder, listing)
    assert list(source.classes) == ["cat", "émeu"]
    assert len(source) == 10
    assert {source.classes[source.labels[i]] in source.name(i) for i in range(10)} == {True}


def test_subsets_by_image(folder, tmp_path):
    listing = tmp_path / "some.txt"
    listing.write_text("dog_2.png\ncat/cat_1.png\ncat_0\n")
    source = open_source(folder, listing)
    names = [os.path.basename(source.name(i)) for i in range(len(source))]
    assert names == ["cat_0.png", "cat_1.png", "dog_2.png"]
    assert source.labels.tolist() == [0, 0, 1]
    assert sorted(source.epoch_order(3, 1)) == [0, 1, 2]


def test_subset_lists_that_do_not_fit(folder, tmp_path):
    with pytest.raises(UserError, match=r"subset list .*absent\.txt cannot be read"):
        open_source(folder, tmp_path / "absent.txt")
    listing = tmp_path / "x.txt"
    listing.write_text("# nothing\n")
    with pytest.raises(UserError, match="is empty"):
        open_source(folder, listing)
    listing.write_text("cat_1.png\ncat_7.png\n")
    with pytest.raises(UserError, match=r"1 of 2 entries .* 'cat_7\.png'\. Did you mean 'cat_"):
        open_source(folder, listing)


def test_a_name_that_several_images_have_is_not_taken_for_one_of_them(folder, tmp_path):
    listing = tmp_path / "x.txt"
    Image.fromarray(picture(7)).save(folder / "cat" / "cat_0.jpg")
    for entry, count in (("x.PNG", 3), ("inner/x.PNG", 3), ("cat/cat_0", 2)):
        listing.write_text(f"dog_1.png\n{entry}\n")
        with pytest.raises(UserError, match=f"1 of 2 entries mean several .*'{entry}'") as error:
            open_source(folder, listing)
        assert ("and 1 more" in str(error.value)) == (count == 3)
    listing.write_text("./dog/inner/x.PNG\ncat_0.jpg\ncat/cat_0.png\ncat/inner/x\n")
    source = open_source(folder, listing)
    names = {os.path.relpath(source.name(i), folder): source.labels[i] for i in range(len(source))}
    assert names == {
        "dog/inner/x.PNG": 1, "cat/cat_0.jpg": 0, "cat/cat_0.png": 0, "cat/inner/x.PNG": 0
    }  # fmt: skip


def _picture(file):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(file)


def test_the_parent_of_train_and_val_is_no_set_of_two_classes(tmp_path):
    for part in ("train", "val"):
        for name in ("cat", "dog"):
            _picture(tmp_path / part / name / "a.png")
    with pytest.raises(UserError, match=r"holds train, val: parts .* data\.root=.*/train"):
        open_source(tmp_path)
    assert open_source(tmp_path / "train").classes == ["cat", "dog"]
    # Classes may be called so, where nothing is below them.
    _picture(tmp_path / "rail" / "train" / "a.png")
    _picture(tmp_path / "rail" / "test" / "a.png")
    assert open_source(tmp_path / "rail").classes == ["test", "train"]


def test_folders_of_the_system_are_no_classes(tmp_path):
    for name in ("cat", ".snapshot", "@eaDir", "#recycle", ".cache", "cat/@eaDir", "cat/.thumbs"):
        _picture(tmp_path / name / "a.png")
    source = open_source(tmp_path)
    assert (source.classes, len(source)) == (["cat"], 1)


def test_macos_companions_of_images_are_no_images(tmp_path):
    """As its tar and its copies to other disks write them, beside every file."""
    # AppleDouble (RFC 1740): magic, version, 16 bytes, no entry.
    companion = b"\0\5\x16\7" + b"\0\2\0\0" + bytes(18)
    with pytest.raises(UnidentifiedImageError):
        Image.open(io.BytesIO(companion))
    _picture(tmp_path / "set" / "cat" / "a.jpg")
    (tmp_path / "set" / "cat" / "._a.jpg").write_bytes(companion)
    assert [source for source, _ in listed(open_source(tmp_path / "set"))] == [
        str(tmp_path / "set" / "cat" / "a.jpg")
    ]
    inside = {"._cat": companion, "cat/._a.png": companion, "cat/a.png": png(1)}
    assert len(_shard(tmp_path / "a.tar", inside)) == 1
    labeled = {"._0.png": companion, "0.png": png(0), "._0.cls": companion, "0.cls": b"3"}
    source = _shard(tmp_path / "b.tar", labeled)
    assert (list(source.classes), len(source)) == (["3"], 1)
    (tmp_path / "set" / "cat" / "a.jpg").unlink()
    with pytest.raises(UserError, match="no images in class folders"):
        open_source(tmp_path / "set")


def test_a_class_may_be_called_by_any_character(tmp_path):
    """As sets of handwritten characters have them, and torchvision reads them."""
    names = ["#", "$", "&", "@", "A", "_b", "#2", "$a"]
    for name in names:
        _picture(tmp_path / "set" / name / "a.png")
    source, reference = open_source(tmp_path / "set"), ImageFolder(str(tmp_path / "set"))
    assert (list(source.classes), len(source)) == (reference.classes, len(names))
    (tmp_path / "some.txt").write_text("# two\n#\n@\n")
    assert open_source(tmp_path / "set", tmp_path / "some.txt").classes == ["#", "@"]


@pytest.mark.parametrize("name", ["@eaDir", "#recycle", "$RECYCLE.BIN", "@Recycle", "__MACOSX"])
def test_trash_and_thumbnails_are_no_classes(tmp_path, name):
    _picture(tmp_path / "cat" / "a.png")
    _picture(tmp_path / name / "a.png")
    assert open_source(tmp_path).classes == ["cat"]


def test_class_folders_win_over_an_archive_beside_them(tmp_path):
    _picture(tmp_path / "cat" / "a.png")
    (tmp_path / "cat.tar").write_bytes(b"what it was unpacked from")
    assert open_source(tmp_path).classes == ["cat"]


def test_a_link_to_a_folder_above_does_not_count_its_images_again(tmp_path):
    _picture(tmp_path / "cat" / "a.png")
    (tmp_path / "cat" / "again").symlink_to(tmp_path / "cat")
    (tmp_path / "cat" / "deep").mkdir()
    (tmp_path / "cat" / "deep" / "up").symlink_to(tmp_path)
    assert len(open_source(tmp_path)) == 1


def test_one_order_of_places_for_all_stages(tmp_path, monkeypatch):
    """The environment stands for what configurations call datasets/."""
    for name in ("IMAGENET_DIR", "DETECTRON2_DATASETS"):
        monkeypatch.delenv(name, raising=False)
    assert located("datasets/imagenet/train") == "datasets/imagenet/train"
    monkeypatch.setenv("DETECTRON2_DATASETS", "/data")
    assert located("datasets/imagenet/train") == "/data/imagenet/train"
    assert located("datasets/cifar10:test") == "/data/cifar10:test"
    monkeypatch.setenv("IMAGENET_DIR", "/scratch/in1k")
    assert located("datasets/imagenet/train-{0..9}.tar") == "/scratch/in1k/train-{0..9}.tar"
    assert located("datasets/shapes/x") == "/data/shapes/x"
    for own in ("/own/imagenet/train", "own/datasets/imagenet", "imagenet/train", ""):
        assert located(own) == own
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    _picture(tmp_path / "mine" / "cat" / "a.png")
    assert open_source("datasets/mine").classes == ["cat"]
    with pytest.raises(UserError, match=f"`intl-transfer data shapes --out {tmp_path}/shapes`"):
        open_source("datasets/shapes/classification/train")


def idx(magic, *sizes, content):
    return b"".join(number.to_bytes(4, "big") for number in (magic, *sizes)) + bytes(content)


@pytest.mark.parametrize("packed", [True, False])
def test_mnists_format(tmp_path, packed):
    import gzip

    pixels = np.random.default_rng(0).integers(0, 256, (3, 5, 4), np.uint8)
    for part, count in (("train", 3), ("t10k", 2)):
        for kind, data in (
            ("images-idx3", idx(0x803, count, 5, 4, content=pixels[:count].tobytes())),
            ("labels-idx1", idx(0x801, count, content=range(count))),
        ):
            file = tmp_path / (f"{part}-{kind}-ubyte" + ".gz" * packed)
            file.write_bytes(gzip.compress(data) if packed else data)
    train, test = open_source(tmp_path), open_source(f"{tmp_path}:test")
    assert (len(train), len(test)) == (3, 2)
    assert train.labels.tolist() == [0, 1, 2]
    np.testing.assert_array_equal(train.image(1), np.stack([pixels[1]] * 3, -1))
    assert train.described().digest != test.described().digest
    broken = tmp_path / ("train-images-idx3-ubyte" + ".gz" * packed)
    whole = broken.read_bytes()
    for damaged in (whole[:20], whole[:12] + b"\xff" * 40 + whole[52:]):
        broken.write_bytes(damaged)
        with pytest.raises(UserError, match=r"cannot be read|no IDX|damaged"):
            open_source(tmp_path)
