from __future__ import annotations

import json

import pytest
import torch
import torchvision
from safetensors.torch import save_file

from intl_transfer.cli import main
from intl_transfer.conversion import (
    audit,
    convert,
    from_detectron2,
    load_backbone,
    read_backbone,
    to_detectron2,
    verify,
)
from intl_transfer.conversion.pipeline import CheckpointMetadata
from intl_transfer.errors import UserError
from intl_transfer.runs import RunDirectory, sha256_file
from intl_transfer.runs.checkpoint import save_checkpoint


def network(name: str = "resnet18", seed: int = 0) -> torch.nn.Module:
    """A ResNet whose batch norms are not at their start, where many mistakes would not show."""
    torch.manual_seed(seed)
    model = torchvision.models.get_model(name, weights=None)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, std=0.2)
            torch.nn.init.normal_(module.running_mean, std=0.2)
            torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
    return model


def backbone_state(name: str = "resnet18", seed: int = 0) -> dict[str, torch.Tensor]:
    state = network(name, seed).state_dict()
    return {k: v for k, v in state.items() if not k.startswith("fc.")}


def same(a, b):
    keys = {k for k in a if not k.endswith("num_batches_tracked")}
    assert keys == {k for k in b if not k.endswith("num_batches_tracked")}
    assert all(torch.equal(a[k], b[k]) for k in keys)


@pytest.mark.parametrize(
    "name", ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "wide_resnet50_2"]
)
def test_names_go_there_and_back(name):
    with torch.device("meta"):
        model = torchvision.models.get_model(name, weights=None)
    state = {k: torch.empty(v.shape) for k, v in model.state_dict().items() if k[:3] != "fc."}
    for value in state.values():
        value.fill_(0.5)
    converted = to_detectron2(state)
    assert len(converted) == sum(not k.endswith("tracked") for k in state)
    same(from_detectron2(converted), state)
    assert audit({k: v for k, v in state.items() if not k.endswith("tracked")}) == name


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_conversion_gives_torchvisions_features_in_detectron2(tmp_path, name):
    model = network(name)
    torch.save(model.state_dict(), tmp_path / "in.pth")
    out = tmp_path / "deep" / "out.pth"
    report = convert(tmp_path / "in.pth", out)
    assert report["architecture"] == name
    assert set(report["parity"]) == {"stem", "res2", "res3", "res4", "res5"}
    assert max(report["parity"].values()) < 1e-5
    assert report["dropped"] == ["fc.weight", "fc.bias"]
    assert report["sha256"] == sha256_file(out)
    assert report["provenance"]["source_sha256"] == sha256_file(tmp_path / "in.pth")
    assert json.loads(out.with_suffix(".json").read_text()) == report
    content = torch.load(out, weights_only=True)
    assert content["matching_heuristics"] is True
    assert content["provenance"] == report["provenance"]
    assert sorted(p.name for p in out.parent.iterdir()) == ["out.json", "out.pth", "out.yaml"]
    same(load_backbone(out), backbone_state(name))


def test_parity_uses_an_independent_forward_pass(tmp_path):
    state = backbone_state()
    file = tmp_path / "out.pth"
    swapped = to_detectron2(state)
    a, b = "res3.0.conv2.weight", "res3.1.conv1.weight"
    swapped[a], swapped[b] = swapped[b], swapped[a]
    torch.save({"model": swapped, "matching_heuristics": True}, file)
    errors = verify.parity(state, "resnet18", file)
    assert errors["res2"] < 1e-5
    assert errors["res3"] > 1e-2


def test_a_wrong_conversion_writes_nothing(tmp_path, monkeypatch):
    import intl_transfer.conversion.pipeline as module

    def wrong(state):
        converted = to_detectron2(state)
        converted["res5.1.conv2.norm.running_mean"] = (
            converted["res5.1.conv2.norm.running_mean"] + 1e-2
        )
        return converted

    monkeypatch.setattr(module, "to_detectron2", wrong)
    torch.save(backbone_state(), tmp_path / "in.pth")
    with pytest.raises(UserError, match=r"features differ by .* at res5.*Nothing was written"):
        convert(tmp_path / "in.pth", tmp_path / "out.pth")
    assert [p.name for p in tmp_path.iterdir()] == ["in.pth"]


def test_a_tensor_that_detectron2_leaves_unfilled_is_found(tmp_path):
    state = to_detectron2(backbone_state())
    del state["res4.0.shortcut.weight"]
    torch.save({"model": state, "matching_heuristics": True}, tmp_path / "out.pth")
    with pytest.raises(UserError, match=r"unfilled.*res4\.0\.shortcut\.weight"):
        verify.parity(backbone_state(), "resnet18", tmp_path / "out.pth")


def damaged(change):
    state = backbone_state()
    change(state)
    return state


def _nan(state):
    state["layer2.0.conv1.weight"][0, 0] = float("nan")


def _negative(state):
    state["bn1.running_var"][3] = -0.1


def _missing(state):
    del state["layer4.1.bn2.running_mean"]


def _extra(state):
    state["layer4.1.attention.weight"] = torch.zeros(3)


def _shape(state):
    state["layer3.0.conv2.weight"] = torch.zeros(256, 256, 1, 1)


def _depth(state):
    for key in [k for k in state if k.startswith("layer3.1.")]:
        del state[key]


def _stem(state):
    state["conv1.weight"] = torch.zeros(64, 3, 3, 3)


def _integers(state):
    state["bn1.weight"] = torch.ones(64, dtype=torch.int64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_nan, r"layer2\.0\.conv1\.weight contains NaN"),
        (_negative, r"bn1\.running_var contains a negative variance, -0\.1"),
        (_missing, r"1 tensors missing \(first: layer4\.1\.bn2\.running_mean\)"),
        (_extra, r"1 unknown \(first: layer4\.1\.attention\.weight\)"),
        (_shape, r"layer3\.0\.conv2\.weight: expected shape \(256, 256, 3, 3\)"),
        (_depth, r"no known ResNet has \(2, 2, 1, 2\) basic blocks"),
        (_stem, "conv1 is 3x3"),
        (_integers, r"bn1\.weight: expected floating-point numbers, found torch\.int64"),
    ],
)
def test_the_audit_names_what_is_wrong(tmp_path, change, message):
    torch.save(damaged(change), tmp_path / "in.pth")
    with pytest.raises(UserError, match=message):
        convert(tmp_path / "in.pth", tmp_path / "out.pth")
    assert not (tmp_path / "out.pth").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_nan, r"in\.pth: layer2\.0\.conv1\.weight contains NaN"),
        (_negative, r"in\.pth: bn1\.running_var contains a negative variance, -0\.1"),
    ],
)
def test_numbers_that_no_network_has_are_not_read_either(tmp_path, change, message):
    """Only conversion refused them; features made of them are NaN."""
    torch.save(damaged(change), tmp_path / "in.pth")
    with pytest.raises(UserError, match=message):
        load_backbone(tmp_path / "in.pth")


def test_wrappers_prefixes_and_half_precision(tmp_path):
    state = backbone_state()
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "a.pth")
    same(load_backbone(tmp_path / "a.pth"), state)
    half = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    torch.save({"model": half}, tmp_path / "b.pth")
    loaded = load_backbone(tmp_path / "b.pth")
    assert all(v.dtype == torch.float32 for v in loaded.values() if v.is_floating_point())
    torch.testing.assert_close(loaded["conv1.weight"], state["conv1.weight"], atol=1e-3, rtol=0)


def test_what_was_read_does_not_follow_the_file(tmp_path):
    """A training writes its next state to the same file, without renaming."""
    before, after = backbone_state(seed=1), backbone_state(seed=2)
    torch.save(before, tmp_path / "last.pth")
    read = load_backbone(tmp_path / "last.pth")
    torch.save(after, tmp_path / "last.pth")
    same(read, before)
    torch.save(read, tmp_path / "last.pth")
    same(torch.load(tmp_path / "last.pth"), before)


@pytest.mark.parametrize("replaced", [False, True])
def test_a_file_that_is_rewritten_while_it_is_read_is_refused(tmp_path, monkeypatch, replaced):
    """Otherwise the weights of one content got the hash of the other."""
    file, other = tmp_path / "last.pth", tmp_path / "other.pth"
    torch.save(backbone_state(seed=1), file)

    def rewritten_first(path):
        torch.save(backbone_state(seed=2), other if replaced else file)
        if replaced:
            other.replace(file)
        return sha256_file(path)

    monkeypatch.setattr("intl_transfer.conversion.backbone.sha256_file", rewritten_first)
    with pytest.raises(UserError, match=r"last\.pth was rewritten .*while it was read"):
        load_backbone(file)


@pytest.mark.parametrize("keep", [0, 5, 1000, 0.5])
def test_truncated_files_are_named(tmp_path, keep):
    for name, save in (
        ("a.pth", lambda p: torch.save(backbone_state(), p)),
        ("b.safetensors", lambda p: save_file(backbone_state(), p)),
    ):
        path = tmp_path / name
        save(path)
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * keep) if isinstance(keep, float) else keep])
        with pytest.raises(UserError, match=f"{name}.* damaged"):
            load_backbone(path)


def test_what_is_no_resnet_is_refused(tmp_path):
    torch.save({"blocks.0.attn.qkv.weight": torch.zeros(3)}, tmp_path / "vit.pth")
    with pytest.raises(UserError, match=r"no known format \(its first keys: blocks\.0"):
        load_backbone(tmp_path / "vit.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(UserError, match="expected a dictionary, found list"):
        load_backbone(tmp_path / "list.pth")
    with pytest.raises(UserError, match="does not exist"):
        load_backbone(tmp_path / "absent.pth")
    with pytest.raises(UserError, match=r"folder without manifest\.json"):
        load_backbone(tmp_path)


def start_run(path, **changes):
    values = {"name": "r", "config_name": "c", "config": {}, "seed": 0, "method": "INTL"}
    return RunDirectory.start(path, **{"stage": "pretrain", **values, **changes})


def checkpoint(seed: int, target: bool = True) -> dict:
    def prefixed(seed):
        state = {f"backbone.{k}": v for k, v in backbone_state(seed=seed).items()}
        return {**state, "projector.0.weight": torch.zeros(3, 3)}

    return {
        "model": prefixed(seed),
        "target": prefixed(seed + 100) if target else None,
        "run": {"id": "x", "name": "r", "config_name": "c", "method": "INTL + EMA", "epochs": 2},
    }


def test_unfinished_runs_give_their_newest_whole_checkpoint(tmp_path):
    run = start_run(tmp_path / "run")
    save_checkpoint(run.path / "checkpoints", 1, checkpoint(1))
    newest = save_checkpoint(run.path / "checkpoints", 2, checkpoint(2))
    found = read_backbone(run.path)
    same(found.state, backbone_state(seed=2))
    assert found.source_format == "intl-transfer checkpoint"
    assert found.method == "INTL + EMA"
    same(load_backbone(run.path, "target"), backbone_state(seed=102))
    newest.write_bytes(newest.read_bytes()[:-100])
    with pytest.warns(UserWarning, match=r"skipped: .*step_00000002\.pt is damaged"):
        same(load_backbone(run.path), backbone_state(seed=1))


def test_finished_runs_give_their_backbone_with_its_origin(tmp_path):
    run = start_run(tmp_path / "run")
    described = {"id": run.manifest["id"], "config_name": "c", "epochs": 2}
    save_file(
        backbone_state(),
        run.path / "backbone.safetensors",
        {"method": "INTL", "backbone": "resnet18", "pretrain_run": json.dumps(described)},
    )
    report = convert(run.path, tmp_path / "out.pth")
    evidence = report["provenance"]["evidence"]
    assert evidence["branch"]["level"] == "stated in the file"  # nobody named one
    named = convert(run.path, tmp_path / "named.pth", "online")["provenance"]["evidence"]
    assert named["branch"] == {"level": "told by the user", "detail": "--branch online"}
    assert report["provenance"]["method"] == "INTL"
    assert report["provenance"]["pretrain_run"] == described
    assert report["provenance"]["source_format"] == "intl-transfer backbone"
    again = read_backbone(tmp_path / "out.pth")
    assert (again.method, again.pretrain_run) == ("INTL", described)
    with pytest.raises(UserError, match="already states that it is from run"):
        convert(run.path, tmp_path / "other.pth", given=CheckpointMetadata(epochs=3))


def test_a_conversion_of_a_conversion_is_of_the_same_network(tmp_path):
    """The moving average became the online network, of another source."""
    file = save_checkpoint(tmp_path, 1, checkpoint(1))
    places = ("once.safetensors", "hub/model.safetensors", "plain.pth", "last.pth")
    forms = (None, "timm", "torchvision", None)
    source, branch = file, "target"
    for place, form in zip(places, forms, strict=True):
        report = convert(source, tmp_path / place, branch, to=form)
        kept = report["provenance"]
        assert (kept["branch"], kept["source_sha256"]) == ("target", sha256_file(file))
        assert kept["source_format"] == "intl-transfer checkpoint"
        assert report["read_sha256"] == sha256_file(source)
        source, branch = tmp_path / place, None
    with pytest.raises(UserError, match="converted from the branch 'target'; omit --branch online"):
        read_backbone(source, "online")


def test_runs_that_have_nothing_to_give(tmp_path):
    run = start_run(tmp_path / "run")
    with pytest.raises(UserError, match="no readable checkpoint; its status is 'running'"):
        load_backbone(run.path)
    start_run(tmp_path / "other", stage="detection")
    with pytest.raises(UserError, match="contains a 'detection' run"):
        load_backbone(tmp_path / "other")
    file = save_checkpoint(tmp_path, 1, checkpoint(0, target=False))
    with pytest.raises(UserError, match="no moving-average copy"):
        load_backbone(file, "target")


def test_the_command(tmp_path, capsys):
    torch.save(network().state_dict(), tmp_path / "in.pth")
    out = tmp_path / "out.pth"
    assert main(["convert", str(tmp_path / "in.pth"), str(out)]) == 0
    printed = capsys.readouterr().out
    for text in ("resnet18", "parity", "RGB, normalized", "strides in 3x3", "left out: fc"):
        assert text in printed
    assert len(printed.splitlines()) <= 11
    made = out.stat()  # without the time of the last access
    assert main(["convert", str(tmp_path / "in.pth"), str(out)]) == 0  # the same again
    assert "kept      " in capsys.readouterr().out
    assert (out.stat().st_ino, out.stat().st_mtime_ns) == (made.st_ino, made.st_mtime_ns)
    assert main(["convert", str(tmp_path / "in.pth"), str(out), "--method", "BYOL"]) == 2
    assert "--force" in capsys.readouterr().err
    assert main(["convert", str(tmp_path / "in.pth"), str(out), "--force"]) == 0
    assert main(["convert", str(tmp_path / "in.pth"), str(tmp_path / "out.onnx")]) == 2
    assert main(["convert", str(tmp_path / "none.pth"), str(tmp_path / "x.pth")]) == 2
