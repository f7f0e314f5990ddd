"""The types beside tensors that published checkpoints hold, by name; everything else is refused.

None of the libraries named here is imported: where a file names one of their classes, something
inert takes its place. Whatever a file can ask for is in this list, and no option makes it longer.
"""

from __future__ import annotations

import argparse
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from intl_transfer.conversion.arrays import StoredArray, StoredType, stored_scalar


class Inert:
    """Stands in for an object of another library: keeps its state, does nothing."""

    state: Any = None

    def __init__(self, *arguments: Any) -> None:
        """Takes whatever the other would."""

    def __setstate__(self, state: Any) -> None:
        self.state = state


def _dictionary(*_: Any) -> OrderedDict[Any, Any]:
    """In place of a `defaultdict` and its like, whose factory would be called later."""
    return OrderedDict()


def _list(*_: Any) -> list[Any]:
    return []


_INERT = (
    # configurations of OmegaConf (solo-learn)
    *("omegaconf.dictconfig.DictConfig", "omegaconf.listconfig.ListConfig"),
    *("omegaconf.base.ContainerMetadata", "omegaconf.base.Metadata", "typing.Any"),
    *(
        f"omegaconf.nodes.{kind}Node"
        for kind in ("Any", "String", "Integer", "Float", "Boolean", "Bytes", "Path", "Enum")
    ),
    # paths and times in the arguments of a training script
    *(f"pathlib.{kind}" for kind in ("PosixPath", "WindowsPath", "PurePosixPath", "Path")),
    *(f"pathlib._local.{kind}" for kind in ("PosixPath", "WindowsPath", "Path")),
    *("datetime.datetime", "datetime.timedelta", "datetime.date"),
    # what Lightning and OpenMMLab keep of a training
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "lightning.pytorch.callbacks.model_checkpoint.ModelCheckpoint",
    "mmengine.logging.history_buffer.HistoryBuffer",
    *("mmengine.logging.history_buffer.mean", "mmengine.logging.history_buffer.current"),
    *("mmengine.logging.history_buffer.max", "mmengine.logging.history_buffer.min"),
    *("mmengine.logging.history_buffer._mean", "mmengine.logging.message_hub.MessageHub"),
)
_DICTIONARIES = (
    "lightning_fabric.utilities.data.AttributeDict",
    "lightning.fabric.utilities.data.AttributeDict",
    "pytorch_lightning.utilities.parsing.AttributeDict",
    *("vissl.config.attr_dict.AttrDict", "vissl.utils.hydra_config.AttrDict"),
    *("yacs.config.CfgNode", "detectron2.config.config.CfgNode", "fvcore.common.config.CfgNode"),
    *("easydict.EasyDict", "addict.addict.Dict", "munch.Munch"),
    *("mmcv.utils.config.ConfigDict", "mmengine.config.config.ConfigDict"),
)
_BUILTINS = (dict, list, tuple, set, frozenset, int, float, bool, str, bytes, complex, slice, range)


def _numpy() -> list[tuple[Any, str]]:
    """Arrays, scalars and their types, under the names of numpy 1 and numpy 2."""
    pairs: list[tuple[Any, str]] = [(StoredArray, "numpy.ndarray"), (StoredType, "numpy.dtype")]
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        pairs.append((StoredArray, f"{module}._reconstruct"))
        pairs.append((stored_scalar, f"{module}.scalar"))
    return pairs


def allowed() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """What :func:`torch.load` may make beside tensors: pairs of a callable and its name."""
    return [
        (argparse.Namespace, "argparse.Namespace"),
        (_dictionary, "collections.defaultdict"),
        (_list, "collections.deque"),
        *((kind, f"builtins.{kind.__name__}") for kind in _BUILTINS),
        *((OrderedDict, name) for name in _DICTIONARIES),
        *((Inert, name) for name in _INERT),
        *_numpy(),
    ]


def plain(value: Any) -> Any:
    """A value out of a configuration, without whatever wrapped it.

    Args:
        value: as read; an :class:`Inert` configuration gives its content, as a dictionary, a list
            or a plain value, and interpolations stay the text that they are.
    """
    for _ in range(8):  # a node in a node; a file could hold a circle
        if isinstance(value, argparse.Namespace):
            return vars(value)
        if not isinstance(value, Inert) or not isinstance(value.state, dict):
            return value
        value = value.state.get("_content", value.state.get("_val"))
    return None
