"""Arguments of libraries' ResNets that change what the same tensors compute."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from intl_transfer.errors import UserError
from intl_transfer.files.placeholders import plain

#: Argument to the values that leave a ResNet torchvision's, in small letters.
Usual = Mapping[str, tuple[Any, ...]]

TIMM: Usual = {
    "act_layer": (None, "relu"),
    "norm_layer": (None, "batchnorm", "batchnorm2d"),
    "aa_layer": (None, ""),
    "avg_down": (None, False),
    "replace_stem_pool": (None, False),
    "block_args": (None, {}),
    "output_stride": (None, 32),
}
OPENMMLAB: Usual = {
    "strides": (None, [1, 2, 2, 2]),
    "dilations": (None, [1, 1, 1, 1]),
    "avg_down": (None, False),
    "multi_grid": (None,),
    "dcn": (None, False),
    "plugins": (None, []),
    "conv_cfg.type": (None, "conv", "conv2d"),
    "act_cfg.type": (None, "relu"),
    "norm_cfg.type": (
        *(None, "bn", "bn2d", "syncbn", "mmsyncbn", "naivesyncbn"),
        *("batchnorm2d", "syncbatchnorm"),
    ),
    "norm_cfg.eps": (None, 1e-5),
}
#: Of transformers' own ResNet.
TRANSFORMERS: Usual = {
    "hidden_act": (None, "relu"),
    "downsample_in_first_stage": (None, False),
}
#: Of a model of transformers, about its backbone.
TRANSFORMERS_BACKBONE: Usual = {"dilation": (None, False, 1), "output_stride": (None, 32)}
DETECTRON2: Usual = {"RES4_DILATION": (None, 1), "RES5_DILATION": (None, 1)}


def refuse_arguments(given: Any, where: str, usual: Usual) -> None:
    """Refuses arguments with which a ResNet has the same tensors for other features.

    Args:
        given: the arguments, by name.
        where: the file and their place in it, for the message.
        usual: of the library.

    Raises:
        UserError: naming the argument and its value.
    """
    for key, values in usual.items():
        value = given
        for name in key.split("."):
            value = plain(value)
            value = value.get(name) if isinstance(value, Mapping) else None
        value = plain(value)
        found = list(value) if isinstance(value, (list, tuple)) else value
        # A class may have its module's name before its own.
        found = found.lower().rpartition(".")[2] if isinstance(found, str) else found
        if found not in values:
            raise UserError(
                f"{where} says {key}={value}: a ResNet's names, and something else is "
                f"computed. Expected {key} as in torchvision's"
            )
