"""What surrounds the loop: checks, checkpoints, the run directory, the exported backbone."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as safetensors_bytes
from torch import Tensor

from intl_transfer.data.views import build_views
from intl_transfer.errors import UserError
from intl_transfer.models import Encoder, MovingAverage
from intl_transfer.runs import RunDirectory, read_manifest, sha256_file, write_atomically
from intl_transfer.runs.checkpoint import load_newest, save_checkpoint
from intl_transfer.runs.distributed import Ranks
from intl_transfer.runs.progress import Progress
from pretrain.baselines import check_options
from pretrain.config import PretrainConfig

METHODS = {
    "intl": "INTL",
    "intl_ema": "INTL + EMA",
    "power": "Spectral power",
    "w_mse": "W-MSE",
    "barlow_twins": "Barlow Twins",
    "vicreg": "VICReg",
    "simclr": "SimCLR",
}
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class State:
    """All that a checkpoint holds, so that a resumed run is the uninterrupted one."""

    def __init__(
        self,
        encoder: Encoder,
        target: MovingAverage | None,
        optimiser: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        config: PretrainConfig,
        name: str,
    ) -> None:
        self.encoder, self.target = encoder, target
        self.optimiser, self.scaler = optimiser, scaler
        self.config, self.name = config, name
        self.run: RunDirectory | None = None
        self.seconds = 0.0  # of training in earlier sessions

    def save(self, folder: Path, step: int, progress: Progress, ranks: Ranks) -> None:
        """Writes a checkpoint from global rank 0; every rank contributes its random state."""
        rng = ranks.gather_objects(random_state(ranks.device))
        if self.run is None:
            return
        state = {
            "model": self.encoder.state_dict(),
            "target": self.target.encoder.state_dict() if self.target else None,
            "optimizer": self.optimiser.state_dict(),
            "scaler": self.scaler.state_dict(),
            "progress": {"step": step, "seconds": self.seconds + progress.elapsed()},
            "rng": rng,
            "config": dataclasses.asdict(self.config),
            "run": describe(self.run, self.config, self.name),
        }
        save_checkpoint(folder, step, state, self.config.engine.keep_checkpoints)

    def resume(self, folder: Path, ranks: Ranks) -> int:
        """Takes up the newest whole checkpoint; returns the number of steps already made."""
        found = load_newest(folder)
        if found is None:
            return 0
        path, state = found
        try:
            self.encoder.load_state_dict(state["model"])
            if self.target is not None:
                self.target.encoder.load_state_dict(state["target"])
            self.optimiser.load_state_dict(state["optimizer"])
            self.scaler.load_state_dict(state["scaler"])
        except (RuntimeError, ValueError, TypeError, AttributeError) as error:
            raise UserError(f"{path} does not fit this configuration: {error}") from None
        # The random streams of a run on another number of ranks have no owner here; views and
        # order do not depend on them.
        if len(state["rng"]) == ranks.world_size:
            restore_random_state(state["rng"][ranks.rank], ranks.device)
        self.seconds = float(state["progress"]["seconds"])
        return int(state["progress"]["step"])


def random_state(device: torch.device) -> dict[str, Tensor]:
    """This rank's generators."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_random_state(state: dict[str, Tensor], device: torch.device) -> None:
    """Sets this rank's generators."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def check(config: PretrainConfig) -> None:
    """Refuses values that no training could use, before anything is built."""
    choices = {
        "loss.method": (config.loss.method, METHODS),
        "loss.axis": (config.loss.axis, ("channel", "batch")),
        "engine.precision": (config.engine.precision, PRECISIONS),
    }
    for key, (value, known) in choices.items():
        if value not in known:
            raise UserError(f"{key} is '{value}'; expected one of {', '.join(known)}")
    check_options(config.loss)
    if len(config.views) < 2:
        raise UserError(f"views has {len(config.views)} entry; INTL needs at least two views")
    if config.optim.epochs < 1 or config.optim.batch_size < 2:
        raise UserError("optim.epochs must be at least 1 and optim.batch_size at least 2")
    try:
        build_views(config.views)
    except ValueError as error:
        raise UserError(f"views: {error}") from None


def unfinished(config: PretrainConfig) -> bool:
    """Whether the run directory still wants work; refuses one of another configuration."""
    output = Path(config.output_dir or "")
    if not (output / "manifest.json").exists():
        return True
    manifest = read_manifest(output)
    wanted, found = comparable(dataclasses.asdict(config)), comparable(manifest["config"])
    differing = sorted(key for key in wanted.keys() | found if wanted.get(key) != found.get(key))
    if differing:
        lines = ", ".join(f"{k}: {found.get(k)} there, {wanted.get(k)} here" for k in differing)
        raise UserError(
            f"{output} holds a run with other settings ({lines}). Give another directory with "
            "output_dir=DIR, or remove that one"
        )
    return manifest["status"] != "finished"


def comparable(config: dict[str, Any]) -> dict[str, Any]:
    """The settings that decide the result, by dotted key."""
    flat: dict[str, Any] = {}
    for key, value in json.loads(json.dumps(config)).items():
        if isinstance(value, dict):
            flat.update({f"{key}.{inner}": inner_value for inner, inner_value in value.items()})
        else:
            flat[key] = value
    # Where the data lies and how the machine is used may change between sessions.
    elsewhere = {"output_dir", "data.root", "data.workers", "data.cache"}
    return {
        key: value
        for key, value in flat.items()
        if key == "engine.precision" or not (key in elsewhere or key.startswith("engine."))
    }


def open_run(config: PretrainConfig, name: str, ranks: Ranks) -> RunDirectory:
    """Opens the run directory for a new session."""
    return RunDirectory.start(
        config.output_dir or "",
        stage="pretrain",
        name=f"{name} seed {config.seed}",
        config_name=name,
        config=dataclasses.asdict(config),
        seed=config.seed,
        method=METHODS[config.loss.method],
        world_size=ranks.world_size,
    )


def describe(run: RunDirectory, config: PretrainConfig, name: str) -> dict[str, Any]:
    """What a backbone says of the run it comes from."""
    return {
        "id": run.manifest["id"],
        "name": run.manifest["name"],
        "config_name": name,
        "method": METHODS[config.loss.method],
        "epochs": config.optim.epochs,
        "dataset": config.data.name,
        "seed": config.seed,
    }


def export(
    run: RunDirectory,
    state: State,
    config: PretrainConfig,
    name: str,
    steps_per_epoch: int,
    loss: float,
    progress: Progress,
) -> None:
    """Writes the backbone under torchvision's names, and the results."""
    backbone = {k: v.cpu().contiguous() for k, v in state.encoder.backbone.state_dict().items()}
    described = describe(run, config, name)
    metadata = {
        "method": described["method"],
        "backbone": config.model.backbone,
        "pretrain_run": json.dumps(described),
    }
    file = run.path / "backbone.safetensors"
    data = safetensors_bytes(backbone, metadata=metadata)
    write_atomically(file, lambda out: out.write(data))
    run.finish(
        {
            "stage": "pretrain",
            "method": described["method"],
            "backbone": config.model.backbone,
            "dataset": config.data.name,
            "epochs": config.optim.epochs,
            "steps": config.optim.epochs * steps_per_epoch,
            "batch_size": config.optim.batch_size,
            "seed": config.seed,
            "final_loss": loss,
            "wall_time_s": round(state.seconds + progress.elapsed(), 3),
            "backbone_file": file.name,
            "backbone_sha256": sha256_file(file),
        }
    )
    print(f"finished: {file}", flush=True)
