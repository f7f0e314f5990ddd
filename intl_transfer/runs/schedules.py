"""The published fine-tuning schedules, and the names under which results may be compared."""

from __future__ import annotations

from collections.abc import Sequence

#: Images per batch of all of them.
BATCH = 16
# (family of data sets, iterations, iterations at which the learning rate drops): name
_PUBLISHED: dict[tuple[str, int, tuple[int, ...]], str] = {
    ("coco_2017", 90_000, (60_000, 80_000)): "1x",
    ("coco_2017", 180_000, (120_000, 160_000)): "2x",
    ("voc", 24_000, (18_000, 22_000)): "24k",
}


def schedule_name(dataset: str, iterations: int, steps: Sequence[int], batch: int) -> str:
    """The name under which results may be compared.

    Args:
        dataset: that is trained on.
        iterations: of the training.
        steps: at which the learning rate drops.
        batch: images per batch.

    Returns:
        ``1x``, ``2x`` or ``24k`` where data set, iterations, steps and batch are the published
        ones; ``1x-batch8`` where as many images are seen in batches of another size, the learning
        rate dropping after as many; else the family and the number of iterations, ``shapes-300``.
    """
    family = dataset_family(dataset)
    for (of, published, drops), name in _PUBLISHED.items():
        here = (scaled(published, BATCH, batch), tuple(scaled(d, BATCH, batch) for d in drops))
        if of == family and here == (iterations, tuple(steps)):
            return name if batch == BATCH else f"{name}-batch{batch}"
    return f"{family.split('_')[0]}-{iterations}"


def dataset_family(name: str) -> str:
    """``coco_2017_train`` is of ``coco_2017``, ``voc_2007_test`` of ``voc``."""
    words = name.split("_")
    return "_".join(words[:2]) if words[0] == "coco" and len(words) > 1 else words[0]


def scaled(iterations: int, batch: int, other: int) -> int:
    """Iterations that see as many images in batches of another size."""
    return round(iterations * batch / other)
