"""Fine-tunes Mask R-CNN or Faster R-CNN from pretrained weights, by the MoCo protocol.

    python detection/train_net.py --config coco_R50_C4.yaml --weights weights/intl_r50.pth
    python detection/train_net.py --config voc_R50_C4.yaml --weights random --seed 3 --num-gpus 8
    python detection/train_net.py --weights RUN --eval-only
    python detection/train_net.py --weights RUN --demo picture.jpg

Any of Detectron2's options can follow as KEY VALUE. Run the same command again to continue an
interrupted run (exit status 75).
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

try:
    from intl_transfer.places import use_own_sources

    use_own_sources(__name__, __file__)
except ModuleNotFoundError:
    sys.exit("error: not set up; run `make setup`, then use .venv/bin/python or activate .venv")

from detection import datasets, detector, labels, weights  # isort: skip  # first: prepares Detectron2
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import verify_results
from detectron2.utils import comm
from torch.multiprocessing import ProcessExitedException

from detection.checkpoints import iterations_of
from detection.checks import check_settings
from detection.config import CONFIGS, RANDOM, as_dict, config_of, load_config
from detection.curves import draw_curves
from detection.demo import demonstrate
from detection.evaluators import summarize
from detection.expected import (
    check_expected,
    check_expected_end,
    check_expected_start,
    is_requested,
)
from detection.machines import launch
from detection.pictures import write_pictures
from detection.session import (
    continuation,
    initialization,
    introduce,
    labels_used,
    not_finite,
    open_run,
    results_of,
    resume,
    set_up,
    show,
)
from detection.settings import CONFIGURED_BATCH, add_arguments, refuse_contradictions, resolve
from detection.stream import OneRankError
from detection.trainer import Trainer
from intl_transfer import command_line
from intl_transfer.boundary import Boundary
from intl_transfer.data.detection_roles import label_problem, mask_setting
from intl_transfer.errors import UserError
from intl_transfer.files.jsons import parse_json
from intl_transfer.runs import MANIFEST, RunDirectory, write_json
from intl_transfer.runs.architectures import architecture
from intl_transfer.runs.changes import Continuation
from intl_transfer.runs.config import config_name, resolve_config
from intl_transfer.runs.lock import directory_lock
from intl_transfer.runs.progress import print_line
from intl_transfer.runs.records import Detector, ImageSet, Initialization
from intl_transfer.runs.stopping import AGAIN, Stopped, StopRequest, ending, passed_on

#: Results of ``--eval-only``, in its output directory.
EVALUATION = "evaluation.json"


def main() -> int:
    """Reads the command line, checks the inputs, and trains."""
    arguments = parse()
    with Boundary(AGAIN) as boundary:
        if arguments.demo:
            demonstrate(
                *(arguments.demo, arguments.weights, arguments.config, arguments.opts),
                folder=arguments.output_dir or ".",
            )
            return 0
        cfg, content, images, earlier = prepare(arguments)
        if earlier is not None and earlier.is_finished:
            print(f"{cfg.OUTPUT_DIR} is finished; nothing to do")
            return 0
        with ExitStack() as stack:
            if arguments.machine_rank == 0:
                stack.enter_context(directory_lock(cfg.OUTPUT_DIR))
            boundary.folder = Path(cfg.OUTPUT_DIR)
            boundary.status = start_processes(cfg, content, images, earlier, arguments)
    return boundary.status


def start_processes(
    cfg: Any,
    content: dict[str, Any] | None,
    images: dict[str, ImageSet],
    earlier: Continuation | None,
    arguments: argparse.Namespace,
) -> int:
    """Runs :func:`worker` in one process per GPU; returns an exit status."""
    gpus = arguments.num_gpus if torch.cuda.is_available() else 1
    with ExitStack() as stack:
        request = None
        if (
            gpus * arguments.num_machines > 1
        ):  # otherwise the worker runs here and receives signals itself
            request = stack.enter_context(passed_on())
        try:
            launch(
                worker,
                gpus,
                num_machines=arguments.num_machines,
                machine_rank=arguments.machine_rank,
                dist_url=arguments.dist_url,
                args=(cfg, content, images, earlier, arguments),
            )
        except ProcessExitedException as error:  # one of several processes has printed the reason
            status: int = error.exit_code
            if request is not None and request.signal is not None and status < 0:
                # A process was ended by the signal before its handler was set, and nothing was
                # saved: end alike.
                number = signal.Signals[request.signal]
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return status or 1
    return 0


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", "--config-file", help="name in configs/detection/, or a path")
    parser.add_argument("--weights", help=f"converted weights, or '{RANDOM}' (from scratch)")
    parser.add_argument("--output-dir", help="run directory; same as OUTPUT_DIR DIR")
    add_arguments(parser)
    parser.add_argument(
        "--resume",
        action="store_true",
        help="continue the run in the output folder (the default); also load checkpoints of a run "
        "without manifest.json",
    )
    Continuation.add_option(parser)
    parser.add_argument(
        "--eval-only",
        action="store_true",
        help="evaluate a fine-tuned detector (--weights FILE or RUN), with its own "
        "configuration or on the test set of another (--config)",
    )
    parser.add_argument(
        "--check-expected",
        action="store_true",
        help="compare the metrics with TEST.EXPECTED_RESULTS at the end; exit status 1 if they "
        "differ by more than their tolerance",
    )
    parser.add_argument(
        "--demo",
        nargs="+",
        metavar="PICTURE",
        help="draw the detections of a fine-tuned detector (--weights FILE or RUN) in these images",
    )
    parser.add_argument("--num-gpus", type=int, default=1, help="number of GPUs on this machine")
    parser.add_argument("--num-machines", type=int, default=1, help="number of nodes")
    parser.add_argument("--machine-rank", type=int, default=0, help="rank of this node, from 0")
    parser.add_argument("--dist-url", default="auto", help="rendezvous address, for several nodes")
    parser.add_argument(
        "opts", nargs="*", metavar="KEY VALUE", help="override settings of Detectron2"
    )
    arguments = command_line.parse(parser)
    # A detector has its own configuration.
    if arguments.config is None and not arguments.demo and not arguments.eval_only:
        parser.error("the following arguments are required: --config")
    return arguments


def prepare(
    arguments: argparse.Namespace,
) -> tuple[Any, dict[str, Any] | None, dict[str, ImageSet], Continuation | None]:
    """Resolves the configuration and checks weights and data before anything is built.

    Returns:
        The configuration, the weights file's content (None for random initialization), the content
        of the data sets, and the existing run (None for an evaluation).
    """
    refuse_contradictions(arguments)
    if arguments.eval_only:
        return *prepare_evaluation(arguments), None
    cfg = resolve(arguments)
    check_expected(cfg, arguments)
    require_one_test_set(cfg)
    if not cfg.DATASETS.TRAIN:
        raise UserError("DATASETS.TRAIN is empty; expected the name of a data set, or several")
    datasets.register(cfg.CUSTOM_DATASETS)
    found = datasets.examine([*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST])
    datasets.settle_classes(cfg, found)
    datasets.fit_to_data(
        cfg, found, mask_setting(resolve_config(arguments.config, CONFIGS), arguments.opts)
    )
    images = datasets.described(found)
    ids = {name: list(found[name].images) for name in cfg.DATASETS.TRAIN}
    lists = labels.chosen(cfg, ids)
    if (problem := label_problem(found, lists)) is not None:
        raise UserError(problem)
    for name, own in lists.items():
        images[name].labels = labels.described(cfg, own, len(ids[name]))
    content = weights.read_weights(cfg.MODEL.WEIGHTS) if cfg.MODEL.WEIGHTS else None
    if content is not None:
        given = weights.set_by_user(arguments.config, arguments.opts)
        changed = weights.follow_settings(cfg, content, given)
        if changed:
            print(f"as belongs to {cfg.MODEL.WEIGHTS}: {', '.join(changed)}")
        if (assumed := weights.assumption(cfg, content, given)) is not None:
            print(assumed)
    check_expected_start(cfg, arguments, initialization(cfg, content))
    cfg.freeze()
    allow = getattr(arguments, "allow_config_change", False)
    earlier = continuation(cfg, content, images, allow, getattr(arguments, "resume", False))
    return cfg, content, images, earlier


def require_one_test_set(cfg: Any) -> None:
    """Refuses a configuration without exactly one test set."""
    if len(cfg.DATASETS.TEST) != 1:
        raise UserError(
            f"DATASETS.TEST is {tuple(cfg.DATASETS.TEST)}; expected one data set, whose metrics go "
            "into results.json"
        )


def prepare_evaluation(
    arguments: argparse.Namespace,
) -> tuple[Any, dict[str, Any], dict[str, ImageSet]]:
    """Like :func:`prepare`, for ``--eval-only``: a detector and its test set."""
    named = arguments.weights
    if named is None and arguments.config is not None:
        named = load_config(arguments.config, arguments.opts).MODEL.WEIGHTS
    file = detector.find(named, "--eval-only")
    arguments.weights = str(file)
    content = weights.read_weights(str(file))
    record = detector.stated(content, file)
    cfg = resolve(arguments, None if arguments.config else own_config(arguments, file, record))
    check_expected(cfg, arguments)
    require_one_test_set(cfg)
    weights.check_whole(content["model"], str(file))
    refuse_others(Path(cfg.OUTPUT_DIR), content["sha256"])
    follow_file(cfg, content, record, arguments)
    datasets.register(cfg.CUSTOM_DATASETS)
    found = datasets.examine(list(cfg.DATASETS.TEST))
    (name,) = cfg.DATASETS.TEST
    names = detector.class_names(content, file)
    detector.match_classes(names, found[name].classes, file, name)  # raises early
    if names is None:
        datasets.settle_classes(cfg, found)
        print(f"assumed: {file} does not state its classes; assuming those of '{name}', in order")
    content["classes"] = names
    built = architecture(as_dict(cfg)) if record is None else record.architecture
    content["architecture"] = built.as_json()
    datasets.fit_to_data(cfg, found, None)  # without masks, only boxes are tested
    check_settings(cfg, str(file))
    check_expected_start(cfg, arguments, None if record is None else record.initialization, record)
    content["iterations"] = iterations_of(file, content)
    check_expected_end(cfg, arguments, content["iterations"])
    cfg.freeze()
    images = datasets.described(found)
    seen = {} if record is None else {own: record.dataset.get(own) for own in record.train}
    for own, known in seen.items():
        if known is not None and known.digest == images[name].digest:
            print(f"warning: the detector was trained on these images ('{own}'): the metrics are "
                  "not those of unseen images")  # fmt: skip
    return cfg, content, images


def refuse_others(folder: Path, sha256: str) -> None:
    """Refuses an output directory whose files are not of an evaluation of this detector.

    Args:
        folder: the output directory.
        sha256: of the detector's file.

    Raises:
        UserError: if a run or the evaluation of another file is in it.
    """
    advice = "its files would be replaced. Choose another directory (--output-dir DIR)"
    if (folder / MANIFEST).exists():
        raise UserError(f"{folder} is the directory of a run; {advice}")
    earlier = folder / EVALUATION
    if not earlier.exists():
        return
    found = parse_json(earlier.read_bytes(), str(earlier))
    of = found.get("weights") if isinstance(found, dict) else None
    if not isinstance(of, dict) or of.get("sha256") != sha256:
        whose = of.get("path") if isinstance(of, dict) else None
        raise UserError(f"{earlier} is the evaluation of {whose or 'another detector'}; {advice}")


def follow_file(
    cfg: Any, content: dict[str, Any], record: Detector | None, arguments: argparse.Namespace
) -> None:
    """Adapts the configuration of an evaluation to its detector; prints what is changed."""
    file, config = arguments.weights, arguments.config
    changed, given = [], set(arguments.opts[::2])
    if config:
        own = weights.set_by_user(config, arguments.opts)
        changed = weights.follow_settings(cfg, content, own)
        given |= weights.set_by_user(config, is_asked=detector.decides_test)
    if record is not None:
        changed += detector.follow_detector(cfg, record, given)
    if changed:
        few = ", ".join(changed[:6]) + (f" and {len(changed) - 6} more" if changed[6:] else "")
        print(f"as belongs to {file}: {few}")
    if record is not None:
        if others := detector.tested_otherwise(cfg, record):
            print(f"as set, and otherwise than (in brackets) in its own test: {', '.join(others)}")
        return
    if (assumed := weights.assumption(cfg, content)) is not None:
        print(assumed)
    if config:
        print(f"assumed: {file} does not state how it was tested; tested as {config} says")


def own_config(arguments: argparse.Namespace, file: Path, record: Detector | None) -> Any:
    """The configuration of a detector, in its file or next to it.

    Raises:
        UserError: if there is none.
    """
    if record is not None:
        return config_of(record.config, arguments.opts, str(file))
    beside = file.parent / "config.yaml"
    if not beside.is_file():
        raise UserError(
            f"{file} does not state its configuration, and there is no config.yaml next to it: set "
            "it "
            "with --config"
        )
    return load_config(str(beside), arguments.opts)


def worker(
    cfg: Any,
    content: dict[str, Any] | None,
    images: dict[str, ImageSet],
    earlier: Continuation | None,
    arguments: argparse.Namespace,
) -> None:
    """The main function of each process."""
    datasets.register(cfg.CUSTOM_DATASETS)  # not registered in a new process
    set_up(cfg, training=not arguments.eval_only)
    status = 0
    try:
        if earlier is None:
            assert content is not None
            evaluate(cfg, content, is_requested(arguments))
        else:
            status = train(cfg, content, images, earlier, arguments)
    except UserError as error:
        if comm.get_world_size() == 1:
            raise
        if comm.is_main_process() or isinstance(error, OneRankError):
            print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except Exception:
        if comm.get_world_size() == 1:
            raise
        with Boundary(AGAIN) as boundary:  # each process reports its own
            boundary.folder = Path(cfg.OUTPUT_DIR)
            raise
        raise SystemExit(boundary.status) from None
    if status and comm.get_local_rank() == 0:  # one per node; exiting with it ends all the others
        raise SystemExit(status)


def evaluate(cfg: Any, content: dict[str, Any], verify: bool = False) -> None:
    """Evaluates a fine-tuned detector, writes :data:`EVALUATION`, and compares it if requested."""
    (name,) = cfg.DATASETS.TEST
    model = Trainer.build_model(cfg)
    weights.load_detector(model, content["model"], cfg.MODEL.WEIGHTS)
    DatasetCatalog.get(name)  # maps its classes to the evaluator's
    classes = MetadataCatalog.get(name).thing_classes
    places = detector.match_classes(content["classes"], classes, cfg.MODEL.WEIGHTS, name)
    evaluator = Trainer.build_evaluator(cfg, name)
    if places is not None:
        left = [word for word, at in zip(content["classes"], places, strict=True) if at < 0]
        if comm.is_main_process():
            print(
                f"classes matched by name: {len(places) - len(left)} of the detector's "
                f"{len(places)}" + (f"; not in '{name}': {', '.join(left[:5])}" if left else "")
            )
        evaluator = detector.InClassesOf(evaluator, places)
    results = Trainer.test(cfg, model, [evaluator])
    if comm.is_main_process():
        metrics = summarize(results, name)
        show(metrics)
        found = {
            "metrics": metrics,
            "dataset": name,
            "architecture": content["architecture"],
            "weights": {
                "path": cfg.MODEL.WEIGHTS,
                "sha256": content["sha256"],
                "iterations": content["iterations"],
            },
            "test_augmentation": cfg.TEST.AUG.ENABLED,
            "protocol": detector.protocol(as_dict(cfg)),
        }
        write_json(Path(cfg.OUTPUT_DIR) / EVALUATION, found)
        write_pictures(cfg.OUTPUT_DIR, name)
        draw_curves(cfg.OUTPUT_DIR)
        print(f"written: {cfg.OUTPUT_DIR}/{EVALUATION}")
        if verify:
            verify_results(cfg, results)


def train(
    cfg: Any,
    content: dict[str, Any] | None,
    images: dict[str, ImageSet],
    earlier: Continuation,
    arguments: argparse.Namespace,
) -> int:
    """Trains, evaluates the last iteration, writes results; returns an exit status."""
    start = initialization(cfg, content)
    with ExitStack() as stack:
        stop = stack.enter_context(StopRequest())
        run = None
        if comm.is_main_process():
            name = config_name(arguments.config)
            details = {CONFIGURED_BATCH: arguments.configured_batch}
            run = open_run(cfg, start, name, images, earlier, details)
            stack.enter_context(run.recording())
        trainer = Trainer(cfg, run, stop, start, images)
        used = labels_used(cfg, trainer, images)
        if run is not None:
            introduce(cfg, start, used)
            labels.write_list(cfg.OUTPUT_DIR, trainer.data_loader.lists)
        if content is not None:
            weights.check_backbone(trainer.model, content["model"], cfg.MODEL.WEIGHTS)
        is_begun = earlier.exists or arguments.resume
        if not resume(trainer, Path(cfg.OUTPUT_DIR), is_begun, earlier):
            trainer.load(None)
        if content is not None and trainer.start_iter == 0:
            weights.check_loaded(trainer.model, content["model"], cfg.MODEL.WEIGHTS)
        if cfg.CONTROL.PERMUTE_WEIGHTS and trainer.start_iter == 0:
            weights.permute_backbone(trainer.model, cfg.SEED)
        try:
            if trainer.start_iter < trainer.max_iter:
                trainer.train()
            with stop.at_once():
                if trainer.start_iter == trainer.max_iter:  # interrupted before its evaluation
                    trainer.evaluate(trainer.max_iter)
                if run is not None:
                    conclude(cfg, run, start, trainer, images)
        except Stopped:
            place = f"iteration {min(trainer.iter + 1, trainer.max_iter)}"
            end = ending(True, stop.signal, place, trainer.saved, AGAIN)
            if run is not None:
                run.interrupt(end.reason)
                print_line(end.line)
            return end.status
        except FloatingPointError as error:
            raise OneRankError(not_finite(error)) from None
    if is_requested(arguments) and comm.is_main_process():
        verify_results(cfg, trainer.evaluation)
    return 0


def conclude(
    cfg: Any,
    run: RunDirectory,
    start: Initialization,
    trainer: Trainer,
    images: dict[str, ImageSet],
) -> None:
    """Writes images and ``results.json``, after the last evaluation."""
    name = cfg.DATASETS.TEST[0]
    metrics = summarize(trainer.evaluation, name)
    try:
        write_pictures(cfg.OUTPUT_DIR, name)
        draw_curves(cfg.OUTPUT_DIR)
    except (OSError, ValueError, SyntaxError, UserError) as error:
        # Failing to draw an image (a full disk, a removed file) must not lose the training.
        print(f"warning: not all images were drawn ({error})", file=sys.stderr, flush=True)
    run.finish(results_of(cfg, start, trainer, metrics, images))
    show(metrics)
    print_line(f"finished: {cfg.OUTPUT_DIR}/results.json, images in predictions.png")


if __name__ == "__main__":
    sys.exit(main())
