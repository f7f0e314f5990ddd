"""Exports the trained backbone with torchvision's names, a model card, and the results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save as safetensors_bytes
from torch import nn

from intl_transfer.data.statistics import statistics_of
from intl_transfer.runs import RunDirectory, sha256_file, write_atomically
from intl_transfer.runs.finite import require_finite
from intl_transfer.runs.records import SCHEMA, Manifest, PretrainResults
from pretrain.config import PretrainConfig
from pretrain.learner import only_warmup
from pretrain.session import describe

CARD = "MODEL_CARD.md"
BACKBONE = "backbone.safetensors"
# Code for the card that turns torchvision's ResNet into one with a small stem.
_SMALL_STEMS = {
    "cifar": "1, 1, bias=False)  # a stem for small images",
    "cifar_published": "1, 2, bias=False)  # INTL's stem for CIFAR: two pixels of padding",
}


def export(
    run: RunDirectory,
    backbone: nn.Module,
    config: PretrainConfig,
    metrics: dict[str, Any],
) -> Path:
    """Writes ``backbone.safetensors``, ``MODEL_CARD.md`` and ``results.json``, in this order.

    Args:
        run: the run directory.
        backbone: the trained one.
        config: the run's.
        metrics: for the results.

    Returns:
        The weights' file.

    Raises:
        StateNotFiniteError: if the backbone contains NaN or infinity; nothing is written.
    """
    weights = {key: v.cpu().contiguous() for key, v in backbone.state_dict().items()}
    advice = "; nothing was written. `intl-transfer convert` accepts an earlier checkpoint"
    require_finite(weights, f"the backbone of {run.path} cannot be exported", advice)
    described = describe(run, config)
    metadata = {
        "method": described["method"],
        "backbone": config.model.backbone,
        "stem": config.model.stem,
        "normalize": json.dumps(statistics_of(config.data.normalize).as_dict()),
        "pretrain_run": json.dumps(described),
    }
    file = run.path / BACKBONE
    data = safetensors_bytes(weights, metadata=metadata)
    write_atomically(file, lambda out: out.write(data))
    results = PretrainResults(
        schema_version=SCHEMA,
        stage="pretrain",
        method=described["method"],
        backbone=config.model.backbone,
        dataset=config.data.name,
        epochs=config.optim.epochs,
        batch_size=config.optim.batch_size,
        seed=config.seed,
        **metrics,
        backbone_file=file.name,
        backbone_sha256=sha256_file(file),
    )
    card = model_card(run.manifest, config, results).encode()
    write_atomically(run.path / CARD, lambda out: out.write(card))
    run.finish(results)
    return file


def model_card(manifest: Manifest, config: PretrainConfig, results: PretrainResults) -> str:
    """The model card, as Markdown.

    Args:
        manifest: of the run.
        config: of the run.
        results: of the run.
    """
    backbone, stem = config.model.backbone, config.model.stem
    rows = [f"| {key} | {value} |" for key, value in _facts(manifest, config, results).items()]
    views = [
        f"| {index} | {v.size} | {v.scale_min:g} to {v.scale_max:g} | {v.blur:g} | {v.solarize:g} |"
        for index, v in enumerate(config.views)
    ]
    timm = (
        f'timm: `timm.create_model("{backbone}", num_classes=0)'
        f'.load_state_dict(load_file("{BACKBONE}"))`.'
    )
    return "\n".join(
        [
            f"# {manifest.name}",
            "",
            f"A {backbone} backbone without classifier, under torchvision's names. Images "
            f"are RGB in [0, 1], normalized by {statistics_of(config.data.normalize)}.",
            "",
            "Method, epochs, data, stem, order of channels and statistics are stated in the file: "
            "the run that wrote it set them. None is inferred or assumed.",
            "",
            "| | |",
            "|---|---|",
            *rows,
            "",
            "| view | pixels | crop scale | blur | solarize |",
            "|---|---|---|---|---|",
            *views,
            "",
            "```python",
            "import torch, torchvision",
            "from safetensors.torch import load_file",
            "",
            _network_as_code(backbone, stem),
            f'weights = load_file("{BACKBONE}")',
            "print(resnet.load_state_dict(weights, strict=False))  # fc alone is missing",
            "```",
            "",
            *([timm, ""] if stem == "imagenet" else []),
        ]
    )


def _facts(manifest: Manifest, config: PretrainConfig, results: PretrainResults) -> dict[str, Any]:
    """The card's first table, by its first column."""
    optim, model, git = config.optim, config.model, manifest.git
    facts = {
        "method": results.method,
        "backbone": f"{model.backbone}, {model.stem} stem",
        "pretraining data": config.data.name + (", a subset" if config.data.subset else ""),
        "epochs, steps": f"{optim.epochs}, {results.steps}",
        "batch size": f"{optim.batch_size} (global)",
        "optimizer": (
            f"{optim.optimizer}, base rate {optim.base_lr:g} x N/256, {optim.warmup_epochs:g} "
            f"epochs of warm-up, cosine, weight decay {optim.weight_decay:g}"
        ),
        **({"warm-up": warning} if (warning := only_warmup(optim)) else {}),
        "projector": (
            f"{model.projector_layers} layers, {model.projector_hidden} to {model.embedding}"
        ),
        "seed": config.seed,
        "final loss": f"{results.final_loss:.4f}",
    }
    if results.knn_accuracy is not None:
        facts[f"{config.knn.k}-NN accuracy"] = f"{results.knn_accuracy:.2f} %"
    revision = f"`{git.revision or 'not known'}`" + (" with local changes" if git.dirty else "")
    return {
        **facts,
        "run": f"`{manifest.id}`",
        "source revision": revision,
        "SHA-256 of the file": f"`{results.backbone_sha256}`",
    }


def _network_as_code(backbone: str, stem: str) -> str:
    """Code to build the network for the weights."""
    network = f'resnet = torchvision.models.get_model("{backbone}")'
    if stem not in _SMALL_STEMS:
        return network
    return (
        f"{network}\nresnet.conv1 = torch.nn.Conv2d(3, 64, 3, {_SMALL_STEMS[stem]}"
        "\nresnet.maxpool = torch.nn.Identity()"
    )
