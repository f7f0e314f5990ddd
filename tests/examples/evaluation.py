"""An evaluation: the class whose mean feature has the largest cosine; nothing learns."""

from __future__ import annotations

import time
from contextlib import ExitStack

import torch
from torch import Tensor
from torch.nn.functional import normalize

from intl_transfer.data.source import ImageSource
from intl_transfer.evaluation.features import on_every_rank
from intl_transfer.evaluation.learner import FeatureNetwork
from intl_transfer.evaluation.session import Kind, Session, frozen_features, images_of
from intl_transfer.runs.stopping import StopRequest


def class_means(
    session: Session, train: ImageSource, test: ImageSource, stop: StopRequest, stack: ExitStack
) -> int:
    """Classifies by the nearest class mean; returns an exit status."""
    began = time.perf_counter()
    network = FeatureNetwork(session.subject, session.config, session.ranks)
    features, labels, queries, truth = (
        part for source in (train, test) for part in _whole(session, network, source)
    )
    members = torch.nn.functional.one_hot(labels, len(train.classes)).to(features).T
    means = normalize(members @ features)
    right = (queries @ means.T).argmax(1) == truth
    top1 = 100 * float(right.double().mean())
    session.finish({"top1": top1}, time.perf_counter() - began)
    if session.ranks.is_main:
        print(f"finished: accuracy by class means {top1:.2f} %: {session.output}/results.json")
    session.ranks.barrier()
    return 0


def _whole(session: Session, network: FeatureNetwork, source: ImageSource) -> tuple[Tensor, Tensor]:
    """Normalized features (N, width) and labels (N,) of a set, from all ranks."""
    images = images_of(session.config, source)
    features, labels = on_every_rank(
        *frozen_features(session, network, images), images, session.ranks
    )
    return normalize(features), labels


KIND = Kind("nearest class mean", class_means, trains=False, protocol=lambda config: {})
