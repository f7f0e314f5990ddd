"""Kinds of evaluation, one row each."""

from __future__ import annotations

import time
from contextlib import ExitStack

from intl_transfer.data.source import ImageSource
from intl_transfer.evaluation.features import check_readable, count_over
from intl_transfer.evaluation.knn import knn_accuracy
from intl_transfer.evaluation.learner import FeatureNetwork
from intl_transfer.evaluation.session import (
    Kind,
    Session,
    frozen_features,
    images_of,
)
from intl_transfer.evaluation.training import Training
from intl_transfer.runs.progress import print_line
from intl_transfer.runs.stopping import StopRequest


def _train(
    session: Session, train: ImageSource, test: ImageSource, stop: StopRequest, stack: ExitStack
) -> int:
    """Trains a head, with or without its backbone, and tests it."""
    return Training(session, train, test).run(stop, stack)


def _neighbors(
    session: Session, train: ImageSource, test: ImageSource, stop: StopRequest, stack: ExitStack
) -> int:
    """K nearest neighbors on frozen features, without training."""
    began = time.perf_counter()
    config, ranks = session.config, session.ranks
    network = FeatureNetwork(session.subject, config, ranks)
    sets = [images_of(config, source) for source in (train, test)]
    parts = [frozen_features(session, network, images) for images in sets]
    missing = sum(
        check_readable(images, count_over(ranks, part), config.data.max_unreadable, key)
        for images, part, key in zip(sets, parts, ("data.train", "data.test"), strict=True)
    )
    accuracy = knn_accuracy(*parts[0], *parts[1], k=config.k, ranks=ranks)
    session.finish({"top1": accuracy}, time.perf_counter() - began, unreadable_images=missing)
    if ranks.is_main:
        line = f"finished: {config.k}-NN accuracy {accuracy:.2f} %: {session.output}/results.json"
        print_line(line)
    ranks.barrier()
    return 0


#: All kinds by name (``kind`` of a configuration).
KINDS: dict[str, Kind] = {
    "linear": Kind("linear evaluation", _train),
    "semi": Kind("fine-tuning on a part of the labels", _train),
    "knn": Kind(
        "k nearest neighbors", _neighbors, trains=False, protocol=lambda config: {"k": config.k}
    ),
}
