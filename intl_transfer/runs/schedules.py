"""The published fine-tuning schedules, and the names under which results may be compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

#: Images per batch of all of them.
BATCH = 16
#: The key of a fine-tuning's batch size.
BATCH_KEY = "SOLVER.IMS_PER_BATCH"
_COCO = frozenset({"coco_2017_train"})
_VOC = frozenset({"voc_2007_trainval", "voc_2012_trainval"})
# (training sets, iterations, iterations at which the learning rate drops): name
_PUBLISHED: dict[tuple[frozenset[str], int, tuple[int, ...]], str] = {
    (_COCO, 90_000, (60_000, 80_000)): "1x",
    (_COCO, 180_000, (120_000, 160_000)): "2x",
    (_VOC, 24_000, (18_000, 22_000)): "24k",
}


def schedule_name(
    datasets: Sequence[str], iterations: int, steps: Sequence[int], batch: int
) -> str:
    """The name under which results may be compared.

    Args:
        datasets: all training sets, in any order.
        iterations: of the training.
        steps: at which the learning rate drops.
        batch: images per batch.

    Returns:
        ``1x``, ``2x`` or ``24k`` if training sets, iterations, steps and batch size are the
        published ones; ``1x-batch8`` for the same number of images (also at learning rate drops)
        with another batch size; otherwise the family of the first training set and the number of
        iterations, ``shapes-300``.
    """
    for (of, published, drops), name in _PUBLISHED.items():
        here = (scaled(published, BATCH, batch), tuple(scaled(d, BATCH, batch) for d in drops))
        # A set that is named twice is trained on twice as often.
        if (of, len(of)) == (frozenset(datasets), len(datasets)) and here == (
            iterations,
            tuple(steps),
        ):
            return name if batch == BATCH else f"{name}-batch{batch}"
    return f"{datasets[0].split('_')[0]}-{iterations}"


def scaled(iterations: int, batch: int, other: int) -> int:
    """The iterations for the same number of images at another batch size."""
    return round(iterations * batch / other)


def at_batch(settings: Mapping[str, Any], batch: int) -> dict[str, Any]:
    """A fine-tuning's settings that change with its batch size, for the same number of images.

    Args:
        settings: Detectron2's, by dotted key, the batch size among them.
        batch: the other batch size.

    Returns:
        The new values of those that are among ``settings``: the learning rate is multiplied by
        ``batch / IMS_PER_BATCH``; iterations, steps, warm-up, periods and batches of precise BN are
        divided by it.
    """
    before = settings[BATCH_KEY]

    def longer(iterations: int) -> int:
        return scaled(iterations, before, batch)

    rules: dict[str, Callable[[Any], Any]] = {
        BATCH_KEY: lambda _: batch,
        "SOLVER.BASE_LR": lambda rate: rate * batch / before,
        "SOLVER.MAX_ITER": longer,
        "SOLVER.STEPS": lambda steps: tuple(longer(step) for step in steps),
        "SOLVER.WARMUP_ITERS": longer,
        "SOLVER.CHECKPOINT_PERIOD": lambda period: max(1, longer(period)),
        "TEST.EVAL_PERIOD": longer,
        "TEST.PRECISE_BN.NUM_ITER": lambda number: max(1, longer(number)),
    }
    if batch == before:
        return {}
    return {key: rule(settings[key]) for key, rule in rules.items() if key in settings}
