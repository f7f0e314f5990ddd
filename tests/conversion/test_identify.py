"""What a file is, before it is read; and that what is used of it is whole."""

from __future__ import annotations

import argparse
import gzip
import io
import json
import os
import socket
import tarfile
import zipfile

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from intl_transfer.conversion import convert, load_backbone, read_backbone
from intl_transfer.conversion.audit import blank_filters
from intl_transfer.conversion.reading import read_content
from intl_transfer.errors import UserError
from tests.conversion.layouts import OPTIMIZER, behind, small_state
from tests.conversion.test_conversion import backbone_state


def _zip(*names):
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name in names:
            archive.writestr(name, b"x" * 40)
    return made.getvalue()


def _encrypted():
    data = bytearray(_zip("weights.pth"))
    directory = data.index(b"PK\x01\x02")
    data[directory + 8] |= 1
    return bytes(data)


def _scripted():
    made = io.BytesIO()
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), made)
    return made.getvalue()


def _exported():
    made = io.BytesIO()
    torch.export.save(torch.export.export(torch.nn.Linear(2, 2), (torch.zeros(1, 2),)), made)
    return made.getvalue()


def _npz():
    made = io.BytesIO()
    np.savez(made, a=np.ones(3))
    return made.getvalue()


def _npy():
    made = io.BytesIO()
    np.save(made, np.ones(3))
    return made.getvalue()


def _tar():
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a"), io.BytesIO())
    return made.getvalue()


KINDS = {
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    "page": (b"\n  <!DOCTYPE html><html>", "HTML page.*download it again"),
    "denied": (b"<?xml version='1.0'?><Error>AccessDenied</Error>", "XML.*download it again"),
    "refused": (b"<Error><Code>AccessDenied</Code></Error>", "markup.*download it again"),
    "scripted": (_scripted, r"TorchScript.*torch\.jit\.load"),
    "exported": (_exported, r"exported program.*torch\.export\.load"),
    "onnx": (b"\x08\x08\x12\x07pytorch\x1a\x052.1.0" + bytes(40), "ONNX"),
    "encrypted": (_encrypted, "encrypted.*password"),
    "zipped": (lambda: _zip("run/weights.pth", "run/log.txt"), "zip archive of files.*unzip"),
    "npz": (_npz, r"\.npz.*numpy\.load"),
    "npy": (_npy, r"one array of numpy"),
    "gzip": (lambda: gzip.compress(bytes(99)), "gzip.*gunzip"),
    "tar": (_tar, "tar -xf"),
    "lite": (b"\x1c\x00\x00\x00TFL3" + bytes(40), "TensorFlow Lite.*exported from"),
    "image": (b"\xff\xd8\xff\xe0" + bytes(40), "an image.*give the checkpoint"),
    "unfinished": (bytes(600), "zeros, as an unfinished download leaves.*fetch it again"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(40), "Keras"),
    "json": (b'{"weight_map": {"a": "b"}}', "JSON"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_file_is_named_with_a_next_step(tmp_path, kind):
    content, message = KINDS[kind]
    file = tmp_path / "in.pth"
    file.write_bytes(content() if callable(content) else content)
    with pytest.raises(UserError, match=rf"in\.pth is not a checkpoint but .*{message}") as caught:
        load_backbone(file)
    assert "weights_only" not in str(caught.value)
    assert "damaged" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "only 0 bytes long. Next: fetch it again"),
        (b"404: Not Found, no such file\n", "text, '404: Not Found, no such file'.* Next: read it"),
        (
            bytes(range(1, 200)),
            "Next: fetch or copy it again, or where you can open it: torch",
        ),
        (_zip("run/data.pkl")[:-30], "archive is damaged.* Next: fetch or copy it again"),
    ],
)
def test_whatever_else_it_is_there_is_a_next_step(tmp_path, content, message):
    (tmp_path / "in.pth").write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_backbone(tmp_path / "in.pth")


@pytest.mark.parametrize("beside", [{"arch": "resnetaa18"}, {"args": {"model": "resnetblur18"}}])
def test_a_checkpoint_that_names_a_network_that_only_looks_alike(tmp_path, beside):
    torch.save({"state_dict": small_state(), **beside}, tmp_path / "in.pth")
    with pytest.raises(UserError, match=r"its network is 'resnet(aa|blur)18', which has"):
        load_backbone(tmp_path / "in.pth")


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ({"model_kwargs": {"act_layer": "silu"}}, "act_layer=silu"),
        ({"model_kwargs": {"block_args": {"attn_layer": None}}}, "block_args="),
        ({"bn_eps": 1e-3}, "bn_eps=0.001"),
        ({"bn_eps": 1e-5, "model_kwargs": {"act_layer": "relu", "output_stride": 32}}, None),
        ({"model_kwargs": {"output_stride": 8}}, "output_stride=8"),
        ({"bn_eps": None, "model_kwargs": None}, None),
    ],
)
def test_a_training_of_timm_with_arguments_that_change_the_network(tmp_path, arguments, what):
    torch.save({"state_dict": small_state(), "args": arguments}, tmp_path / "in.pth")
    if what is None:
        assert load_backbone(tmp_path / "in.pth")
        return
    with pytest.raises(UserError, match=what):
        load_backbone(tmp_path / "in.pth")


@pytest.mark.parametrize("mean", [None, [0.5, 0.4, 0.3], [0.5]])
@pytest.mark.parametrize("std", [None, (0.2, 0.25, 0.3), [0.25]])
def test_images_are_taken_as_the_arguments_of_timms_training_say(tmp_path, mean, std):
    arguments = argparse.Namespace(model="resnet18", mean=mean, std=std, bn_eps=None)
    torch.save({"state_dict": small_state(), "args": arguments}, tmp_path / "in.pth")
    found = read_backbone(tmp_path / "in.pth").settings
    model = timm.create_model("resnet18")
    theirs = timm.data.resolve_data_config(vars(arguments), model=model)
    assert found.pixel_mean == pytest.approx([255 * value for value in theirs["mean"]])
    assert found.pixel_std == pytest.approx([255 * value for value in theirs["std"]])
    levels = {2: "read from its configuration", 1: "inferred from names", 0: "assumed"}
    assert found.pixels_source.level == levels[(mean is not None) + (std is not None)]


@pytest.mark.parametrize("kind", ["fifo", "socket", "/dev/zero", "/dev/null"])
def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path, kind):
    file = tmp_path / "in.pth"
    with socket.socket(socket.AF_UNIX) as opened:
        if kind == "fifo":
            os.mkfifo(file)
        elif kind == "socket":
            opened.bind(str(file))
        else:
            file.symlink_to(kind)
        with pytest.raises(UserError, match=r"in\.pth is no regular file but a pipe or a device"):
            convert(file, tmp_path / "out.pth")
    assert [path.name for path in tmp_path.iterdir()] == ["in.pth"]


def test_a_folder_of_several_networks(tmp_path):
    """As accelerate's save_state writes them."""
    for name in ("model.safetensors", "model_1.safetensors"):
        save_file(backbone_state(), tmp_path / name)
    with pytest.raises(UserError, match=r"several networks: model\.safetensors, model_1"):
        load_backbone(tmp_path)


def test_odd_tensors_of_a_head_are_no_matter(tmp_path):
    values = {**small_state(), "fc.weight": torch.zeros(9, 512).to_sparse()}
    torch.save(values, tmp_path / "in.pth")
    assert "fc.weight" not in load_backbone(tmp_path / "in.pth")


def test_filters_of_zeros_that_varied_are_told(tmp_path):
    state = backbone_state()
    state["layer3.0.conv2.weight"][5:8] = 0
    save_file(state, tmp_path / "in.safetensors")
    with pytest.warns(UserWarning, match=r"3 filters of layer3\.0\.conv2 are all zero, t"):
        convert(tmp_path / "in.safetensors", tmp_path / "out.safetensors")
    dead = {**state, "layer3.0.bn2.running_var": state["layer3.0.bn2.running_var"].clone()}
    dead["layer3.0.bn2.running_var"][5:8] = 0
    assert blank_filters(dead) is None


def test_the_index_of_a_sharded_checkpoint(tmp_path):
    file = tmp_path / "model.safetensors.index.json"
    file.write_text(json.dumps({"metadata": {}, "weight_map": {"a": "b"}}))
    with pytest.raises(UserError, match=r"its file 'b' is not in"):
        load_backbone(file)
    with pytest.raises(UserError, match=r"several files.*give the folder"):
        read_content(file)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("vit_tiny_patch16_224", "a Vision Transformer"),
        ("swin_tiny_patch4_window7_224", "a Swin Transformer"),
        ("beit_base_patch16_224", "a Vision Transformer"),
        ("convnext_atto", "a ConvNeXt"),
        ("densenet121", "a DenseNet"),
        ("regnetx_002", "a RegNet"),
        ("efficientnet_b0", "an EfficientNet or MobileNet"),
        ("resnetv2_50", "a pre-activation ResNet"),
        ("vgg11", "a VGG or AlexNet"),
    ],
)
def test_other_architectures_are_named(tmp_path, name, words):
    with torch.device("meta"):
        shapes = timm.create_model(name).state_dict()
    torch.save({k: torch.zeros(1) for k in shapes}, tmp_path / "in.pth")
    with pytest.raises(UserError, match=words):
        load_backbone(tmp_path / "in.pth")


@pytest.mark.parametrize("values", [OPTIMIZER, {"optimizer": OPTIMIZER, "lr_scheduler": {}}])
def test_an_optimizer_alone(tmp_path, values):
    torch.save(values, tmp_path / "in.pth")
    with pytest.raises(UserError, match="an optimizer's state alone"):
        load_backbone(tmp_path / "in.pth")


def test_a_strangers_file_is_listed(tmp_path):
    state = {f"trunk.unit{i}.w": torch.ones(1) for i in range(5)} | {"top.w": torch.ones(1)}
    torch.save({"weights": state}, tmp_path / "in.pth")
    with pytest.raises(UserError, match=r"found 6 tensors: 'weights/trunk' \(5\), .*torch\.save"):
        load_backbone(tmp_path / "in.pth")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([small_state(), {"epoch": 1}], r"found list of 2: \[0\] with 120 tensors.*\[0\], OUT"),
        (
            ({"epoch": 1}, {"net": small_state()}),
            r"found tuple of 2: \[1\] with 120 tensors.*\[1\], OUT",
        ),
        ([1, 2], r"found list of 2 without any named tensors.*torch\.save\(model"),
        (torch.ones(2, 3), r"one tensor of shape \(2, 3\).*torch\.save\(model"),
        ({"a": 1, "b": [2]}, r"first keys: a, b\): no tensor in it"),
        ({"model": {"_fsdp_wrapped_module._flat_param": torch.ones(9)}}, "FSDP.*FULL_STATE_DICT"),
    ],
)
def test_what_has_no_names_is_listed_with_the_line_to_type(tmp_path, values, words):
    torch.save(values, tmp_path / "in.pth")
    with pytest.raises(UserError, match=words):
        load_backbone(tmp_path / "in.pth")


@pytest.mark.parametrize(
    "name", ["model.ckpt-250.data-00000-of-00001", "model.ckpt-250.index", "saved_model.pb"]
)
def test_parts_of_tensorflows_files_are_named(tmp_path, name):
    (tmp_path / name).write_bytes(bytes(range(200, 250)))
    with pytest.raises(UserError, match=r"TensorFlow's checkpoint.*Next: load it there"):
        load_backbone(tmp_path / name)


def test_folders_say_what_lies_in_them(tmp_path):
    with pytest.raises(UserError, match="It holds nothing"):
        load_backbone(tmp_path)
    (tmp_path / "global_step5").mkdir()
    (tmp_path / "latest").write_text("global_step5")
    with pytest.raises(UserError, match="It holds global_step5/, latest"):
        load_backbone(tmp_path)
    torch.save({"module": small_state()}, tmp_path / "global_step5" / "mp_rank_00.pt")
    with pytest.raises(UserError, match=r"It holds global_step5/mp_rank_00\.pt: give one"):
        load_backbone(tmp_path)


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8), r"quantized.*dequantize\(\)"),
        (lambda t: t.to_sparse(), "sparse"),
        (lambda t: torch.nn.Parameter(t.to_sparse()), "sparse"),
        (lambda t: t.to("meta"), "meta device"),
    ],
)
def test_tensors_without_plain_numbers_are_refused_in_words(tmp_path, made, words):
    state = small_state()
    state["layer1.0.conv1.weight"] = made(torch.eye(64))
    torch.save({"model": behind("net.", state)}, tmp_path / "in.pth")
    with pytest.raises(UserError, match=rf"'model/net\.layer1\.0\.conv1\.weight'.*{words}"):
        convert(tmp_path / "in.pth", tmp_path / "out.pth")


def _hurt(path, name, size=64):
    """Zeros in the middle of one record, as a disk leaves them."""
    with zipfile.ZipFile(path) as archive:
        record = archive.getinfo(name)
    data = bytearray(path.read_bytes())
    start = record.header_offset + record.file_size // 2
    data[start : start + size] = bytes(size)
    path.write_bytes(data)


def _largest(path):
    with zipfile.ZipFile(path) as archive:
        return max(archive.infolist(), key=lambda record: record.file_size).filename


@pytest.mark.parametrize("mapped", [True, False])
def test_zeros_inside_a_record_that_is_used_are_found(tmp_path, mapped):
    file = tmp_path / "in.pth"
    torch.save({"state_dict": backbone_state()}, file)
    _hurt(file, _largest(file), 500_000)
    with pytest.raises(UserError, match=r"in\.pth is damaged \(the checksum of its record"):
        read_backbone(file)
    content = read_content(file, mmap=mapped)
    with pytest.raises(UserError, match="checksum"):
        content.verify(content.tensors.values())
    assert not (tmp_path / "out.pth").exists()


def test_what_is_not_used_may_be_damaged(tmp_path):
    """An optimizer's state costs neither memory nor time."""
    file = tmp_path / "in.pth"
    torch.save({"state_dict": backbone_state(), "optimizer": torch.ones(4_000_000)}, file)
    _hurt(file, _largest(file))
    assert len(read_backbone(file).state) > 100


def test_files_without_checksums_are_read(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(backbone_state(), tmp_path / "in.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    assert len(load_backbone(tmp_path / "in.pth")) > 100


@pytest.mark.parametrize("layer", ["layer3.0.bn2", "layer2.0.downsample.1", "bn1"])
def test_statistics_that_one_layer_never_kept(tmp_path, layer):
    state = backbone_state()
    state[f"{layer}.running_mean"] = torch.zeros_like(state[f"{layer}.running_mean"])
    state[f"{layer}.running_var"] = torch.ones_like(state[f"{layer}.running_var"])
    torch.save(state, tmp_path / "in.pth")
    with pytest.raises(UserError, match=rf"the statistics of {layer} are in their initial state"):
        convert(tmp_path / "in.pth", tmp_path / "out.pth")


def test_a_file_of_deepspeeds_without_the_numbers_is_refused(tmp_path):
    empty = {f"backbone.{key}": torch.empty(0) for key in small_state()}
    torch.save({"module": empty, "ds_config": {}}, tmp_path / "in.pth")
    with pytest.raises(UserError, match=r"conv1\.weight' has no numbers.*zero_to_fp32"):
        load_backbone(tmp_path / "in.pth")
