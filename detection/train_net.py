"""Fine-tunes Mask R-CNN or Faster R-CNN from pretrained weights, by the MoCo protocol.

    python detection/train_net.py --config coco_R50_C4.yaml --weights weights/intl_r50.pth
    python detection/train_net.py --config voc_R50_C4.yaml --weights random --seed 3 --num-gpus 8

Any of Detectron2's options can follow as KEY VALUE. Run again with --resume to continue.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import warnings
import zipfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# In place of this script's own folder, whose modules are `detection.*`.
sys.path[0] = str(ROOT)
warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.")
warnings.filterwarnings("ignore", message=".*torch.meshgrid.*")

from detection import datasets, weights  # isort: skip  # first: prepares Detectron2
import torch
from detectron2.engine import default_setup, launch
from detectron2.utils import comm
from torch.multiprocessing import ProcessExitedException

from detection.config import RANDOM, as_dict, load_config, schedule_name
from detection.evaluators import summarise
from detection.pictures import draw_predictions
from detection.trainer import Trainer
from intl_transfer.errors import UserError
from intl_transfer.runs import RunDirectory, read_manifest, sha256_file, write_json

# Where things lie and how the machine is used may differ between sessions of one run.
FREE_TO_CHANGE = {
    "OUTPUT_DIR",
    "MODEL.WEIGHTS",
    "MODEL.DEVICE",
    "DATALOADER.NUM_WORKERS",
    "SOLVER.CHECKPOINT_PERIOD",
    "TEST.EVAL_PERIOD",
}


def main() -> int:
    """Reads the command line, checks everything that can be checked, then trains."""
    arguments = parse()
    try:
        cfg, content = prepare(arguments)
        if arguments.resume and not arguments.eval_only and finished(cfg):
            print(f"{cfg.OUTPUT_DIR} is finished; nothing to do")
            return 0
        launch(
            worker,
            arguments.num_gpus if torch.cuda.is_available() else 1,
            num_machines=arguments.num_machines,
            machine_rank=arguments.machine_rank,
            dist_url=arguments.dist_url,
            args=(cfg, content, arguments),
        )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ProcessExitedException as error:  # one of several processes has said why
        return error.exit_code or 1
    except KeyboardInterrupt:
        print("stopped; --resume continues from the last checkpoint", file=sys.stderr)
        return 130
    return 0


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--config", "--config-file", required=True, help="name in configs/detection/, or a path"
    )
    parser.add_argument("--weights", help=f"converted weights, or '{RANDOM}' (from scratch)")
    parser.add_argument("--output-dir", help="run directory, as OUTPUT_DIR")
    parser.add_argument("--seed", type=int, default=0, help="decides heads, order and sampling")
    parser.add_argument(
        "--resume", action="store_true", help="continue the run in the output folder"
    )
    parser.add_argument("--eval-only", action="store_true", help="evaluate a finished detector")
    parser.add_argument("--num-gpus", type=int, default=1, help="GPUs on this machine")
    parser.add_argument("--num-machines", type=int, default=1)
    parser.add_argument("--machine-rank", type=int, default=0)
    parser.add_argument("--dist-url", default="auto", help="rendezvous for several machines")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="overrides")
    return parser.parse_args()


def prepare(arguments: argparse.Namespace) -> tuple[Any, dict[str, Any] | None]:
    """Resolves the configuration and checks weights and data, before anything is built.

    Returns:
        The configuration, and the weights file's content (None for random initialisation).
    """
    cfg = load_config(arguments.config, arguments.opts)
    cfg.SEED = arguments.seed
    if arguments.weights is not None:
        cfg.MODEL.WEIGHTS = "" if arguments.weights == RANDOM else arguments.weights
    name = Path(arguments.config).stem
    start = RANDOM if arguments.weights == RANDOM else Path(cfg.MODEL.WEIGHTS).stem
    if arguments.output_dir:
        cfg.OUTPUT_DIR = arguments.output_dir
    elif cfg.OUTPUT_DIR == "./output":  # Detectron2's own default: all runs in one folder
        cfg.OUTPUT_DIR = f"runs/detection/{name}_{start}_seed{cfg.SEED}"
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        print(
            "no GPU found: using the CPU"
            + (
                f" (--num-gpus {arguments.num_gpus} has no effect)"
                if arguments.num_gpus > 1
                else ""
            )
        )
        cfg.MODEL.DEVICE = "cpu"
    if len(cfg.DATASETS.TEST) != 1:
        raise UserError(
            f"DATASETS.TEST is {tuple(cfg.DATASETS.TEST)}; expected one data set, whose figures go "
            "into results.json"
        )
    datasets.register()
    datasets.check([*([] if arguments.eval_only else cfg.DATASETS.TRAIN), *cfg.DATASETS.TEST])
    content = None if arguments.weights == RANDOM else weights.read_weights(cfg.MODEL.WEIGHTS)
    cfg.freeze()
    if (Path(cfg.OUTPUT_DIR) / "manifest.json").exists() and not arguments.eval_only:
        if not arguments.resume:
            raise UserError(
                f"{cfg.OUTPUT_DIR} holds a run already. Continue it with --resume, give another "
                "folder with --output-dir, or remove it"
            )
        check_same_run(cfg, content)
    return cfg, content


def check_same_run(cfg: Any, content: dict[str, Any] | None) -> None:
    """Refuses to continue a run under settings or from weights that are not its own."""
    manifest = read_manifest(cfg.OUTPUT_DIR)
    there, here = flat(manifest["config"]), flat(as_dict(cfg))
    differing = [
        f"{key}: {there.get(key)} there, {here.get(key)} here"
        for key in sorted(there.keys() | here.keys())
        if there.get(key) != here.get(key) and key not in FREE_TO_CHANGE
    ]
    sha = None if content is None else sha256_file(cfg.MODEL.WEIGHTS)
    before = manifest["inputs"][0]["sha256"] if manifest["inputs"] else None
    if sha != before:
        differing.append(f"sha256 of the weights: {before} there, {sha} here")
    if differing:
        raise UserError(
            f"{cfg.OUTPUT_DIR} holds a run with other settings ({'; '.join(differing)}). Give "
            "another folder with --output-dir, or remove that one"
        )


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings under dotted keys."""
    values: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            values.update(flat(value, f"{prefix}{key}."))
        else:
            values[f"{prefix}{key}"] = value
    return values


def finished(cfg: Any) -> bool:
    """Whether the output folder's run is done."""
    folder = Path(cfg.OUTPUT_DIR)
    return (folder / "manifest.json").exists() and read_manifest(folder)["status"] == "finished"


def worker(cfg: Any, content: dict[str, Any] | None, arguments: argparse.Namespace) -> None:
    """What each process does."""
    default_setup(cfg, argparse.Namespace(eval_only=arguments.eval_only))
    logging.getLogger("fvcore.common.checkpoint").setLevel(logging.ERROR)
    if cfg.MODEL.DEVICE == "cpu":
        # Single runs repeat to the bit; Detectron2 only seeds.
        torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        if arguments.eval_only:
            evaluate(cfg, content)
        else:
            train(cfg, content, arguments)
    except UserError as error:
        if comm.get_world_size() == 1:
            raise
        if comm.is_main_process():
            print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def evaluate(cfg: Any, content: dict[str, Any] | None) -> None:
    """Evaluates a fine-tuned detector and writes ``evaluation.json``."""
    model = Trainer.build_model(cfg)
    if content is None:
        raise UserError("--eval-only needs a fine-tuned detector: give it with --weights FILE")
    missing = [key for key in model.state_dict() if key not in content["model"]]
    missing = [key for key in missing if not key.endswith(("num_batches_tracked",))]
    if missing:
        raise UserError(
            f"weights {cfg.MODEL.WEIGHTS} are not a whole detector of this configuration: "
            f"{len(missing)} tensors are missing, the first: {missing[0]}"
        )
    model.load_state_dict(content["model"])
    results = Trainer.test(cfg, model)
    if comm.is_main_process():
        metrics = summarise(results, cfg.DATASETS.TEST[0])
        show(metrics)
        write_json(Path(cfg.OUTPUT_DIR) / "evaluation.json", {"metrics": metrics})


def train(cfg: Any, content: dict[str, Any] | None, arguments: argparse.Namespace) -> None:
    """Trains, evaluates the last iteration, writes results."""
    with ExitStack() as stack:
        run = None
        if comm.is_main_process():
            run = open_run(cfg, content, Path(arguments.config).stem)
            stack.enter_context(run.recording())
        trainer = Trainer(cfg, run)
        if content is not None:
            weights.check_backbone(trainer.model, content["model"], cfg.MODEL.WEIGHTS)
        if arguments.resume:
            choose_checkpoint(Path(cfg.OUTPUT_DIR))
        trainer.resume_or_load(resume=arguments.resume)
        if content is not None and trainer.start_iter == 0:
            weights.check_loaded(trainer.model, content["model"], cfg.MODEL.WEIGHTS)
        if trainer.start_iter < trainer.max_iter:
            trainer.train()
        else:  # stopped between the last iteration and its evaluation
            trainer.evaluation = trainer.test(cfg, trainer.model)
        if run is not None:
            name = cfg.DATASETS.TEST[0]
            draw_predictions(cfg, trainer.model, name, Path(cfg.OUTPUT_DIR) / "predictions.png")
            metrics = summarise(trainer.evaluation, name)
            run.finish(results_of(cfg, run, trainer, metrics))
            show(metrics)
            print(f"finished: {cfg.OUTPUT_DIR}/results.json, pictures in predictions.png")


def open_run(cfg: Any, content: dict[str, Any] | None, name: str) -> RunDirectory:
    """Opens the run directory for a new session."""
    start = initialisation(cfg, content)
    inputs = []
    if content is not None:
        inputs.append(
            {
                "role": "weights",
                "path": os.path.abspath(cfg.MODEL.WEIGHTS),
                "sha256": start["weights_sha256"],
                "provenance": start["provenance"],
            }
        )
    return RunDirectory.start(
        cfg.OUTPUT_DIR,
        stage="detection",
        name=f"{name} from {start['method'] or Path(cfg.MODEL.WEIGHTS).stem} seed {cfg.SEED}",
        config_name=name,
        config=as_dict(cfg),
        seed=cfg.SEED,
        method=start["method"],
        inputs=inputs,
        world_size=comm.get_world_size(),
    )


def initialisation(cfg: Any, content: dict[str, Any] | None) -> dict[str, Any]:
    """Where the backbone comes from, as far as the weights file says."""
    if content is None:
        return {
            "kind": "random",
            "method": "random init",
            "weights_sha256": None,
            "provenance": None,
        }
    provenance = content.get("provenance")
    method = provenance.get("method") if isinstance(provenance, dict) else None
    supervised = method is not None and "supervised" in method.lower().split("-")
    return {
        "kind": "supervised" if supervised else "pretrained",
        "method": method,
        "weights_sha256": sha256_file(cfg.MODEL.WEIGHTS),
        "provenance": provenance if isinstance(provenance, dict) else None,
    }


def results_of(
    cfg: Any, run: RunDirectory, trainer: Trainer, metrics: dict[str, Any]
) -> dict[str, Any]:
    """The content of ``results.json``."""
    kept = run.manifest["inputs"]
    given = kept[0] if kept else {"sha256": None, "provenance": None}
    method = run.manifest["method"]
    name = cfg.DATASETS.TEST[0]
    head = "C4" if "Res5" in cfg.MODEL.ROI_HEADS.NAME else "FPN"
    return {
        "stage": "detection",
        "dataset": {
            "name": name,
            "train": list(cfg.DATASETS.TRAIN),
            "layout": datasets.layout(name),
            "images": datasets.check([name])[name],
        },
        "architecture": {
            "meta": "Mask R-CNN" if cfg.MODEL.MASK_ON else "Faster R-CNN",
            "backbone": f"resnet{cfg.MODEL.RESNETS.DEPTH}",
            "head": head,
        },
        "schedule": {
            "name": schedule_name(cfg),
            "iterations": cfg.SOLVER.MAX_ITER,
            "batch_size": cfg.SOLVER.IMS_PER_BATCH,
            "base_lr": cfg.SOLVER.BASE_LR,
        },
        "initialisation": {
            "kind": kind_of(kept, method),
            "method": method,
            "weights_sha256": given["sha256"],
            "provenance": given["provenance"],
        },
        "seed": cfg.SEED,
        "iteration": trainer.max_iter,
        "metrics": metrics,
        "wall_time_s": round(trainer.costs.seconds, 3),
        "images_per_second": round(trainer.costs.images_per_second(), 3),
        "peak_memory_mb": round(trainer.costs.peak_memory_mb(), 1),
    }


def kind_of(inputs: list[dict[str, Any]], method: str | None) -> str:
    """``random``, ``supervised`` or ``pretrained``."""
    if not inputs:
        return "random"
    return "supervised" if method and "supervised" in method.lower() else "pretrained"


def choose_checkpoint(folder: Path) -> None:
    """Points Detectron2 at the newest whole checkpoint; names damaged ones and passes them over."""
    if not comm.is_main_process():
        comm.synchronize()
        return
    found = sorted(folder.glob("model_*.pth"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in found:
        try:
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()
        except zipfile.BadZipFile:
            damaged = "all of it"
        if damaged is None:
            (folder / "last_checkpoint").write_text(path.name)
            break
        print(f"passed over: {path} is damaged", file=sys.stderr)
    else:
        (folder / "last_checkpoint").unlink(missing_ok=True)
        if found:
            raise UserError(f"none of the {len(found)} checkpoints in {folder} can be read")
    comm.synchronize()


def show(metrics: dict[str, Any]) -> None:
    """Prints the figures of one run."""
    for task, figures in metrics.items():
        text = ", ".join(
            f"{key} {figures[key]:.2f}" if figures[key] is not None else f"{key} -"
            for key in ("AP", "AP50", "AP75")
        )
        print(f"{task}: {text}")


if __name__ == "__main__":
    sys.exit(main())
