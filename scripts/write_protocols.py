"""Writes the protocols of published results, from the shipped configurations that follow them."""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

try:
    from intl_transfer.places import use_own_sources

    use_own_sources(__name__, __file__)
except ModuleNotFoundError:
    sys.exit("error: not set up; run `make setup`, then use .venv/bin/python or activate .venv")

from dataclasses import asdict

from detection.config import as_dict, load_config
from intl_transfer.command_line import parse
from intl_transfer.evaluation.command import configuration
from intl_transfer.evaluation.kinds import KINDS
from intl_transfer.results.protocols import FILE
from intl_transfer.runs.settings import deciding

PLACE = Path(__file__).resolve().parents[1] / "intl_transfer" / "results" / FILE


class Published(NamedTuple):
    """A recipe that published results follow, with facts of the published data.

    What it measures and leaves open: see :class:`intl_transfer.results.protocols.Protocol`.
    """

    stage: str
    recipe: str
    measures: tuple[str, str, str]
    facts: dict[str, Any]
    open: Mapping[str, str] = MappingProxyType({})


_MASKS, _BOXES = "Mask R-CNN resnet50-C4", "Faster R-CNN resnet50-C4"
_COCO = {"dataset.images": 5000, "evaluator.metric": "COCO"}
_VOC = {"dataset.images": 4952, "evaluator.metric": "VOC, 11 points"}
_CIFAR = {"dataset.train.images": 50_000, "dataset.test.images": 10_000}
_IMAGENET = {"dataset.train.images": 1_281_167, "dataset.test.images": 50_000}
_IMAGENET_100 = {"dataset.test.images": 5000}
#: Batch norms over all GPUs: of MoCo's fine-tuning files, and of INTL's.
_NORMS = {"MODEL.RESNETS.NORM": ["naiveSyncBN", "SyncBN"]}
_OF_TABLES = {
    "SOLVER.BASE_LR": "stated by every title; published rows join the standard one's tables alone",
    "DATASETS.LABELS.*": "stated by every title",
}
_CLASSES = {"data.subset": "the classes may be listed, or have folders of their own"}

PUBLISHED = (
    Published("detection", "coco_R50_C4_1x", ("coco_2017_val", _MASKS, "1x"), _COCO, _OF_TABLES),
    Published("detection", "coco_R50_C4_2x", ("coco_2017_val", _MASKS, "2x"), _COCO, _OF_TABLES),
    Published("detection", "voc_R50_C4", ("voc_2007_test", _BOXES, "24k"), _VOC, _OF_TABLES),
    # Two rates of the head: of two views, and of multi-crop.
    *(
        Published("evaluation", recipe, ("imagenet", "resnet50", "linear"), _IMAGENET)
        for recipe in ("imagenet_linear", "imagenet_linear_multicrop")
    ),
    *(
        Published("evaluation", f"{name}_{kind}", (name, "resnet18", kind), _CIFAR)
        for name in ("cifar10", "cifar100")
        for kind in ("linear", "knn")
    ),
    Published(
        *("evaluation", "imagenet100_linear", ("imagenet100", "resnet18", "linear")),
        *(_IMAGENET_100, _CLASSES),
    ),
)


def entries() -> list[dict[str, Any]]:
    """The content of the data file."""
    return [
        {
            "recipe": one.recipe,
            "measures": list(one.measures),
            "settings": dict(sorted({**_settings(one), **one.facts}.items())),
            "alternatives": _NORMS if one.stage == "detection" else {},
            "open": dict(one.open),
        }
        for one in PUBLISHED
    ]


def _settings(one: Published) -> dict[str, Any]:
    if one.stage == "detection":
        return deciding("detection", as_dict(load_config(one.recipe)))
    config = configuration(one.recipe, [])
    # Results without a configuration state these.
    known = KINDS[config.kind].protocol(config)
    return deciding("evaluation", asdict(config)) | {f"protocol.{k}": v for k, v in known.items()}


def main() -> None:
    parse(argparse.ArgumentParser(description=__doc__))
    PLACE.write_text(json.dumps(entries(), indent=1) + "\n")
    print(f"wrote {PLACE}")


if __name__ == "__main__":
    main()
