"""Common parts of all kinds of evaluation: the run directory, features of data sets."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from intl_transfer.data.source import ImageSource
from intl_transfer.evaluation.backbone import EvaluatedBackbone
from intl_transfer.evaluation.config import EvaluationConfig, interpolation_of, protocol
from intl_transfer.evaluation.features import (
    EvaluationImages,
    check_features,
    extract_features,
)
from intl_transfer.evaluation.learner import FeatureNetwork
from intl_transfer.runs import RunDirectory
from intl_transfer.runs.changes import Continuation, run_described
from intl_transfer.runs.distributed import Ranks
from intl_transfer.runs.records import (
    SCHEMA,
    Architecture,
    Dataset,
    EvaluationResults,
    ImageSet,
)
from intl_transfer.runs.stopping import StopRequest

ROWS = 128  # images or features per batch without training


@dataclass(frozen=True)
class Kind:
    """One kind of evaluation.

    Attributes:
        title: for display.
        run: evaluates, given the session, training images, test images, the handler of requests to
            stop, and an exit stack; returns an exit status.
        trains: whether it trains, with ``optim``.
        protocol: facts on which two evaluations must agree for their metrics to be comparable.
    """

    title: str
    run: Callable[[Session, ImageSource, ImageSource, StopRequest, ExitStack], int]
    trains: bool = True
    protocol: Callable[[EvaluationConfig], dict[str, Any]] = protocol


@dataclass
class Session:
    """The state of one session of an evaluation.

    Attributes:
        config: the run's.
        name: the configuration's.
        subject: the backbone.
        ranks: this process's place.
        output: the run directory.
        kind: of the evaluation.
        earlier: the existing run in the directory, if any.
        labels: what the protocol says of the training labels, from
            :func:`~intl_transfer.evaluation.batches.open_sets`.
        run: the run directory, open, on rank 0.
    """

    config: EvaluationConfig
    name: str
    subject: EvaluatedBackbone
    ranks: Ranks
    output: Path
    kind: Kind
    earlier: Continuation
    labels: dict[str, str] = field(default_factory=dict)
    run: RunDirectory | None = None

    def finish(self, metrics: dict[str, float | None], seconds: float, **facts: Any) -> None:
        """Writes the results, on rank 0."""
        if self.run is None:
            return
        config = self.config
        self.run.finish(
            EvaluationResults(
                schema_version=SCHEMA,
                stage="evaluation",
                kind=config.kind,
                dataset=Dataset(name=config.data.name),
                architecture=Architecture(backbone=self.subject.architecture),
                protocol={**self.kind.protocol(config), **self.labels},
                epoch=config.optim.epochs if self.kind.trains else None,
                initialization=self.subject.initialization,
                seed=config.seed,
                metrics=metrics,
                **facts,
                wall_time_s=round(seconds, 3),
            )
        )


def trained_backbone(session: Session) -> dict[str, str]:
    """What a file says of the backbone in it, where the evaluation trained that, too.

    With it the file is a start for other evaluations: `supervised`, where labels alone trained it.
    """
    config, subject = session.config, session.subject
    start, images = subject.initialization, subject.settings
    if session.run is None or config.kind != "semi":
        return {}
    if images.channels != "RGB" or images.stride_in_1x1:
        return {}  # which no file of ours can state
    method = "supervised" if start.kind == "random" else f"{start.method or 'unknown'}, then labels"
    further: dict[str, Any] = {}
    if start.kind == "random":
        further = {"model.zero_init_residual": config.model.zero_init_residual}
    elif start.weights_sha256:
        further = {"weights_sha256": start.weights_sha256}
    facts = {"method": method, "epochs": config.optim.epochs, "dataset": config.data.name}
    settings = dataclasses.asdict(config)
    run = run_described(session.run.manifest, "evaluation", settings, further, **facts)
    statistics = {"mean": images.pixel_mean, "std": images.pixel_std}
    return {
        "method": method,
        "backbone": subject.architecture,
        "stem": subject.stem,
        "normalize": json.dumps(
            {key: [round(v / 255, 6) for v in values] for key, values in statistics.items()}
        ),
        "pretrain_run": json.dumps(run),
    }


def open_run(session: Session, dataset: dict[str, ImageSet]) -> RunDirectory:
    """Opens the run directory for a new session."""
    config, start = session.config, session.subject.initialization
    return RunDirectory.start(
        session.output,
        stage="evaluation",
        name=f"{session.name} of {start.method or 'unknown method'} seed {config.seed}",
        config_name=session.name,
        config=dataclasses.asdict(config),
        seed=config.seed,
        method=start.method,
        inputs=session.subject.inputs,
        world_size=session.ranks.world_size,
        dataset=dataset,
        changes=session.earlier.changes,
        origin=session.earlier.origin,
    )


def images_of(config: EvaluationConfig, source: ImageSource) -> EvaluationImages:
    """A data set's images without augmentation."""
    data = config.data
    return EvaluationImages(source, data.size, data.crop_pct, interpolation_of(data))


def frozen_features(
    session: Session, network: FeatureNetwork, images: EvaluationImages
) -> tuple[Tensor, Tensor]:
    """This rank's part of a data set's features and labels, without augmentation.

    Raises:
        StateNotFiniteError: if features of any rank contain NaN or infinity.
    """
    workers = session.config.data.workers
    found = extract_features(network, images, session.ranks, ROWS, workers, network.inputs)
    check_features(found[0], session.ranks)
    return found
