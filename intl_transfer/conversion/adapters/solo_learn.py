"""Lightning checkpoints of solo-learn: vturrisi/solo-learn, solo/methods/base.py.

``state_dict/backbone.*`` and, of momentum methods, ``momentum_backbone.*`` (before: ``encoder`` and
``momentum_encoder``), beside an online classifier. By default ``backbone``, which its own linear
evaluation takes. The method is in the hyper-parameters, or in the ``args.json`` that its
checkpointer (solo/utils/checkpointer.py) writes beside the file. Its 3x3 stem for CIFAR
pads by two pixels.

Any module of Lightning may have these names: without solo-learn's method the file is Lightning's,
and nothing but its networks is known.
"""

from __future__ import annotations

from intl_transfer.conversion.adapters.base import ANY, ONLINE, TARGET, Layout
from intl_transfer.conversion.adapters.lightning import VERSION
from intl_transfer.conversion.evidence import Fact, configured
from intl_transfer.conversion.reading import Content, small_json
from intl_transfer.files.placeholders import plain

_METHODS = {
    "barlow_twins": "Barlow Twins",
    "byol": "BYOL",
    "dino": "DINO",
    "mocov2plus": "MoCo v2+",
    "mocov3": "MoCo v3",
    "nnclr": "NNCLR",
    "ressl": "ReSSL",
    "simclr": "SimCLR",
    "simsiam": "SimSiam",
    "swav": "SwAV",
    "vicreg": "VICReg",
    "wmse": "W-MSE",
    "deepclusterv2": "DeepCluster v2",
    "vibcreg": "VIbCReg",
    "nnbyol": "NNBYOL",
    "nnsiam": "NNSiam",
    "supcon": "SupCon",
    "all4one": "All4One",
}


def _method(content: Content) -> Fact | None:
    kept = plain(content.values.get("hyper_parameters"))
    where = "hyper_parameters"
    if not isinstance(kept, dict):
        kept, where = small_json(content.beside("args.json")), "args.json beside the file"
    inner = plain(kept.get("cfg"))
    name = plain((inner if isinstance(inner, dict) else kept).get("method"))
    # Other people's code has a setting of this name as well, for anything.
    known = _METHODS.get(name) if isinstance(name, str) else None
    return Fact(known, configured(f"{where}: method={name}")) if known else None


_PLACES = {
    ONLINE: rf"{ANY}(?:backbone|encoder)\.",
    TARGET: rf"{ANY}(?:momentum_backbone|momentum_encoder)\.",
}
_HEADS = (rf"^{ANY}(?:classifier|projector|predictor|momentum_\w+|prototypes)\.",)

LAYOUT = Layout(
    "solo-learn",
    _PLACES,
    "state_dict/backbone.",
    required_keys=_HEADS,
    top=(VERSION,),
    method_name=_method,
    stated=_method,
    stem="cifar_published",
)
ANY_MODULE = Layout(
    "Lightning", _PLACES, "state_dict/backbone.", required_keys=_HEADS, top=(VERSION,)
)
