"""Networks that were pickled whole, against their own forward pass."""

from __future__ import annotations

import functools
import re

import pytest
import torch
import torchvision
from torch import nn

from intl_transfer.conversion import convert, read_backbone
from intl_transfer.conversion.verify import detectron2_backbone, relative_error
from intl_transfer.conversion.verify import torchvision_network as rebuilt
from intl_transfer.errors import UserError
from intl_transfer.models import build_backbone


def network(name: str = "resnet18", **changes) -> nn.Module:
    torch.manual_seed(0)
    return moved(torchvision.models.get_model(name, weights=None, **changes))


def moved(made: nn.Module) -> nn.Module:
    """The network with norms as after training."""
    for module in made.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.01, 0.5)
    return made.eval()


def features(made: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """The last stage's, by the network's own forward pass."""
    found = []
    handle = made.layer4.register_forward_hook(lambda *args: found.append(args[2]))
    with torch.no_grad():
        made(images)
    handle.remove()
    return found[0]


def images() -> torch.Tensor:
    return torch.randn(1, 3, 48, 64, generator=torch.Generator().manual_seed(1))


def replaced(made: nn.Module, old: type, new: nn.Module) -> nn.Module:
    for module in list(made.modules()):
        for name, child in module.named_children():
            if type(child) is old:
                setattr(module, name, new)
    return made


def changed(place: str, **settings) -> nn.Module:
    made = network()
    for key, value in settings.items():
        setattr(made.get_submodule(place), key, value)
    return made


class Wrapped(nn.Module):
    def __init__(self, backbone):
        super().__init__()
        self.head, self.backbone = nn.Sequential(nn.Linear(4, 4), nn.GELU()), backbone


def reflecting() -> nn.Module:
    made = network()
    pads = {"padding": 3, "padding_mode": "reflect", "bias": False}
    made.conv1 = nn.Conv2d(3, 64, 7, 2, **pads).requires_grad_(False)
    return made


def timms(**changes) -> nn.Module:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    return moved(timm.create_model("resnet18", **changes))


def blurred() -> nn.Module:
    timm = pytest.importorskip("timm")
    return timms(aa_layer=timm.layers.BlurPool2d)


OTHERS = {
    "eps": (lambda: network(norm_layer=functools.partial(nn.BatchNorm2d, eps=1e-2)),
            "'bn1' is a BatchNorm2d with eps=0.01; expected 1e-05"),
    "reflect": (reflecting, "'conv1' is a Conv2d with padding_mode=reflect; expected zeros"),
    "dilated": (lambda: network("resnet50", replace_stride_with_dilation=[False, False, True]),
                r"'layer4.0.conv2' is a Conv2d with stride=(1, 1); expected (2, 2)"),
    "gelu": (lambda: replaced(network(), nn.ReLU, nn.GELU()), "'layer1.0.relu' is a GELU"),
    "one leaky": (lambda: replaced(network(), nn.ReLU, nn.LeakyReLU(0.3)), "is a LeakyReLU"),
    "no activation": (lambda: replaced(network(), nn.ReLU, nn.Identity()), "is a Identity"),
    "ceil": (lambda: changed("maxpool", ceil_mode=True), "'maxpool' is a MaxPool2d with ceil_mode"),
    "average": (lambda: replaced(network(), nn.MaxPool2d, nn.AvgPool2d(3, 2, 1)),
                "'maxpool' is a AvgPool2d; expected ReLU or MaxPool2d"),
    "no pooling": (lambda: replaced(network(), nn.MaxPool2d, nn.Identity()),
                   "'maxpool' is a Identity; expected MaxPool2d"),
    "blurred": (blurred, "'layer2.0.conv1' is a Conv2d with stride=(1, 1); expected (2, 2)"),
    "silu": (lambda: timms(act_layer=nn.SiLU), "is a SiLU; expected ReLU"),
    "padding": (lambda: changed("conv1", padding=(2, 2)),
                "'conv1' is a Conv2d with padding=(2, 2)"),
}  # fmt: skip


@pytest.mark.parametrize("kind", OTHERS)
def test_layers_that_compute_something_else_are_refused(tmp_path, kind):
    make, message = OTHERS[kind]
    made = make()
    torch.save(made, tmp_path / "in.pth")
    with pytest.raises(UserError, match=re.escape(message)):
        read_backbone(tmp_path / "in.pth")
    # The same tensors alone, which state nothing of it, give other features.
    state = {k: v for k, v in made.state_dict().items() if not k.startswith("fc.")}
    architecture = "resnet50" if "layer1.0.conv3.weight" in state else "resnet18"
    theirs, ours = features(made, images()), features(rebuilt(state, architecture), images())
    assert theirs.shape != ours.shape or relative_error(theirs, ours) > 1e-3


@pytest.mark.parametrize(
    ("place", "wrap"),
    [("model/", lambda n: {"model": n}), ("module.", nn.DataParallel), ("backbone.", Wrapped)],
)
def test_layers_are_found_wherever_the_network_is(tmp_path, place, wrap):
    torch.save(wrap(changed("layer3.1.bn2", eps=0.1)), tmp_path / "in.pth")
    with pytest.raises(UserError, match=f"'{place}layer3.1.bn2' is a BatchNorm2d with eps=0.1"):
        read_backbone(tmp_path / "in.pth")


def caffes() -> nn.Module:
    made = network("resnet50")
    for layer in (made.layer2, made.layer3, made.layer4):
        layer[0].conv1.stride, layer[0].conv2.stride = (2, 2), (1, 1)
    return made


SAME = {
    "torchvision": network,
    "strides in 1x1": caffes,
    "timm": timms,
    "synchronized": lambda: nn.SyncBatchNorm.convert_sync_batchnorm(network()),
    "without classifier": lambda: replaced(network(), nn.Linear, nn.Identity()),
    "in parallel": lambda: nn.DataParallel(network()),
    "with a head": lambda: Wrapped(network()),
}


@pytest.mark.parametrize("kind", SAME)
def test_layers_that_compute_the_same_are_read(tmp_path, kind):
    made = SAME[kind]()
    torch.save(made, tmp_path / "in.pth")
    found = read_backbone(tmp_path / "in.pth")
    assert found.settings.stride_in_1x1 == (kind == "strides in 1x1")
    assert str(found.settings.strides_source) == "stated in the file (its layers)"
    architecture = "resnet50" if "layer1.0.conv3.weight" in found.state else "resnet18"
    ours = rebuilt(found.state, architecture, found.settings)
    inner = getattr(made, "module", getattr(made, "backbone", made))
    assert relative_error(features(inner, images()), features(ours, images())) < 1e-5


def test_strides_that_layers_state_reach_detectron2(tmp_path):
    made = caffes()
    torch.save(made, tmp_path / "in.pth")
    report = convert(tmp_path / "in.pth", tmp_path / "out.pth")
    settings = read_backbone(tmp_path / "out.pth").settings
    assert report["config"]["MODEL.RESNETS.STRIDE_IN_1X1"] is True
    ours = detectron2_backbone("resnet50", tmp_path / "out.pth", settings)
    with torch.no_grad():
        found = ours(images())["res5"]
    assert relative_error(features(made, images()), found) < 1e-5


@pytest.mark.parametrize("stem", ["cifar", "cifar_published"])
def test_padding_of_a_small_stem_is_stated(tmp_path, stem):
    made = moved(build_backbone("resnet18", stem)[0])
    torch.save(made, tmp_path / "in.pth")
    found = read_backbone(tmp_path / "in.pth")
    assert (found.stem, found.sources["stem"].level) == (stem, "stated in the file")
    made.maxpool = nn.MaxPool2d(3, 2, 1)
    torch.save(made, tmp_path / "in.pth")
    with pytest.raises(UserError, match="'maxpool' is a MaxPool2d; expected ReLU"):
        read_backbone(tmp_path / "in.pth")


class Padded(torchvision.models.ResNet):
    """As SwAV's ResNet: a layer of zeros before a convolution that pads by less."""

    def __init__(self, pixels, convolution):
        super().__init__(torchvision.models.resnet.BasicBlock, [2, 2, 2, 2])
        self.conv1 = nn.Conv2d(3, 64, **convolution, bias=False)
        self._modules = {"padding": nn.ConstantPad2d(pixels, 0.0), **self._modules}

    def _forward_impl(self, x):
        return super()._forward_impl(self.padding(x))


def test_zeros_before_the_stem_count_as_its_padding(tmp_path):
    made = moved(Padded(1, {"kernel_size": 7, "stride": 2, "padding": 2}))
    torch.save(made, tmp_path / "in.pth")
    ours = rebuilt(read_backbone(tmp_path / "in.pth").state, "resnet18")
    assert relative_error(features(made, images()), features(ours, images())) < 1e-5
    made.conv1.padding = (3, 3)
    torch.save(made, tmp_path / "in.pth")
    with pytest.raises(UserError, match=r"padding=\(3, 3\); expected \(2, 2\)"):
        read_backbone(tmp_path / "in.pth")
    made = moved(Padded(1, {"kernel_size": 3, "stride": 1, "padding": 1}))
    made.maxpool = nn.Identity()
    torch.save(made, tmp_path / "in.pth")
    assert read_backbone(tmp_path / "in.pth").stem == "cifar_published"


class Normalize(nn.Module):
    """Of somebody's own: what it computes, the file does not say."""


def test_a_class_of_ones_own_in_the_network_is_named_with_the_way_out(tmp_path):
    made = network()
    made._modules = {"normalize": Normalize(), **made._modules}
    torch.save(made, tmp_path / "in.pth")
    with pytest.raises(UserError, match=r"'normalize' is a \S+Normalize; .*model\.state_dict\(\)"):
        read_backbone(tmp_path / "in.pth")


def test_layers_of_transformers_are_read(tmp_path):
    transformers = pytest.importorskip("transformers")
    sizes = {"depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 256, 512], "layer_type": "basic"}
    torch.manual_seed(0)
    made = moved(transformers.ResNetModel(transformers.ResNetConfig(**sizes)))
    torch.save(made, tmp_path / "in.pth")
    ours = rebuilt(read_backbone(tmp_path / "in.pth").state, "resnet18")
    with torch.no_grad():
        theirs = made(images()).last_hidden_state
    assert relative_error(theirs, features(ours, images())) < 1e-5
    made = moved(transformers.ResNetModel(transformers.ResNetConfig(**sizes, hidden_act="gelu")))
    torch.save(made, tmp_path / "in.pth")
    with pytest.raises(UserError, match="GELUActivation; expected ReLU"):
        read_backbone(tmp_path / "in.pth")


def test_settings_of_a_layer_may_be_anything(tmp_path):
    """Made by nobody's training: no traceback of a comparison."""
    for value in (torch.ones(2), [torch.ones(2), 1], {"a": 1}, print, "same", None, (1, 2, 3)):
        made = changed("layer1.0.conv1", stride=value)
        made.layer1[0].conv2.padding = value
        torch.save(made, tmp_path / "in.pth")
        if value is None:  # not stated
            assert read_backbone(tmp_path / "in.pth").state
        else:
            with pytest.raises(UserError, match=r"'layer1\.0\.conv1' is a Conv2d with stride="):
                read_backbone(tmp_path / "in.pth")
