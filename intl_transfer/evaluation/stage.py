"""The evaluation stage: top-1 and top-5 accuracy of a backbone, in a run directory."""

from __future__ import annotations

import dataclasses
from contextlib import ExitStack
from pathlib import Path

import torch

from intl_transfer.devices import set_numerics
from intl_transfer.evaluation.backbone import EvaluatedBackbone
from intl_transfer.evaluation.batches import Controlled, described, open_sets, seen_in_training
from intl_transfer.evaluation.config import EvaluationConfig, data_statistics
from intl_transfer.evaluation.kinds import KINDS
from intl_transfer.evaluation.session import Session, open_run
from intl_transfer.runs.changes import Continuation
from intl_transfer.runs.controls import in_words
from intl_transfer.runs.distributed import Ranks
from intl_transfer.runs.stopping import StopRequest


def evaluate(
    config: EvaluationConfig,
    name: str,
    subject: EvaluatedBackbone,
    ranks: Ranks,
    earlier: Continuation,
) -> int:
    """Runs an evaluation, from the start or its newest checkpoint, to its results.

    Args:
        config: checked, with ``output_dir``.
        name: the configuration's.
        subject: the backbone.
        ranks: this process's place.
        earlier: the existing run in the directory, if any.

    Returns:
        An exit status: 0, or 75 for an interrupted run.
    """
    if config.engine.threads is not None:
        torch.set_num_threads(config.engine.threads)
    set_numerics(benchmark=True)
    train, test, labels = open_sets(config.data, ranks)
    images = described(train, test, ranks)
    places = {"data.train": config.data.train, "data.test": config.data.test}
    same = seen_in_training(places, [images["train"], images["test"]])
    configured = None if config.data.normalize is None else data_statistics(config.data)
    unused = subject.unused(configured)
    control = in_words(dataclasses.asdict(config.control))
    if control:
        train, test = (
            Controlled(source, config.control, config.seed, trained)
            for source, trained in ((train, True), (test, False))
        )
    output = Path(config.output_dir or "")
    earlier.add_images(images)
    session = Session(config, name, subject, ranks, output, KINDS[config.kind], earlier, labels)
    with ExitStack() as stack:
        stop = stack.enter_context(StopRequest())
        if ranks.is_main:
            session.run = open_run(session, images)
            stack.enter_context(session.run.recording())
            print(
                f"{session.kind.title}, {subject.architecture} "
                f"({subject.initialization.method or 'method unknown'}) on {config.data.name}: "
                f"{len(train)} + {len(test)} images, {len(train.classes)} classes, "
                f"{ranks.world_size} rank(s) on {ranks.device.type}",
                *([f"warning: {same}"] if same else []),
                *([f"control: {control}"] if control else []),
                *([unused] if unused else []),
                *(
                    f"assumed, since the weights do not state it: {text}"
                    for text in subject.assumptions()
                ),
                sep="\n",
                flush=True,
            )
        return session.kind.run(session, train, test, stop, stack)
