"""k nearest neighbors on frozen features, over ranks."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from intl_transfer.runs.distributed import Ranks

_CHUNK = 1024  # queries at a time
_BLOCK = 8192  # training features at a time


@torch.no_grad()
def knn_predict(
    train: Tensor,
    train_labels: Tensor,
    queries: Tensor,
    k: int = 5,
    ranks: Ranks | None = None,
) -> Tensor:
    """Classifies by majority vote of the k nearest neighbors in Euclidean distance.

    This is the protocol of the whitening literature (W-MSE, INTL: k = 5). Ties are resolved to the
    smallest label, as in scikit-learn. As there, distances are computed in float64: what tells
    neighbors apart may be far below the largest distance, and at any scale of the features.

    Args:
        train: features (n, width); with several ranks this rank's part, of any length.
        train_labels: (n,), int64.
        queries: features (q, width), the same on every rank.
        k: neighbors; fewer if there are not enough.
        ranks: this process's place, if it is one of several.

    Returns:
        A label for each query, (q,), the same on every rank.

    Raises:
        ValueError: if there is no training feature on any rank, k is below 1, or a feature is NaN
            or infinite.

    Example:
        >>> import torch
        >>> train = torch.tensor([[0.0], [0.1], [1.0]])
        >>> knn_predict(train, torch.tensor([4, 4, 7]), torch.tensor([[0.0], [0.9]]), k=1)
        tensor([4, 7])
    """
    if k < 1:
        raise ValueError(f"k is {k}; expected at least 1 neighbor")
    several = ranks is not None and ranks.world_size > 1
    classes = int(train_labels.max()) + 1 if len(train_labels) else 0
    if several:
        # `several` implies that ranks is not None.
        classes = max(ranks.gather_objects(classes))  # type: ignore[union-attr]
    if classes == 0:
        raise ValueError("no training features; k nearest neighbors need at least one")
    origin = _mean(train, several)
    # A sum over all ranks' features: every rank raises, or none does.
    if not bool(origin.isfinite().all()) or not bool(queries.isfinite().all()):
        raise ValueError("features contain NaN or infinity; they have no nearest neighbors")
    predictions = []
    found = _nearest(train, train_labels, queries.double() - origin, origin, k)
    for distances, labels in zip(*(torch.split(of_all, _CHUNK) for of_all in found), strict=True):
        if several:
            distances, labels = _nearest_of_all(distances, labels, k)
        predictions.append(_majority(labels, distances, classes))
    return torch.cat(predictions) if predictions else queries.new_zeros(0, dtype=torch.int64)


def _mean(train: Tensor, several: bool) -> Tensor:
    """The mean of all ranks' training features, (width,), float64."""
    total = train.sum(0, dtype=torch.float64)
    count = torch.tensor([len(train)], dtype=torch.float64, device=total.device)
    if several:
        dist.all_reduce(total)
        dist.all_reduce(count)
    return total / count


def _nearest(
    train: Tensor, labels: Tensor, queries: Tensor, origin: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    """Squared distances and labels (q, k), nearest first; infinite distances if there are fewer.

    Args:
        train: features (n, width), of any precision.
        labels: theirs.
        queries: float64 (q, width), seen from the origin.
        origin: (width,): near to all features, distances lose least.
        k: neighbors.
    """
    found = queries.new_full((len(queries), k), float("inf"))
    whose = torch.zeros(len(queries), k, dtype=torch.int64, device=queries.device)
    lengths = queries.square().sum(1, keepdim=True)
    chunks = [torch.split(of_all, _CHUNK) for of_all in (queries, lengths, found, whose)]
    for block, own in zip(torch.split(train, _BLOCK), torch.split(labels, _BLOCK), strict=True):
        rows = block.double() - origin  # once for all queries
        lengths_of_rows = rows.square().sum(1)
        for chunk, length, so_far, so_far_whose in zip(*chunks, strict=True):
            squared = (chunk @ rows.T).mul_(-2).add_(length).add_(lengths_of_rows)
            near = squared.topk(min(k, len(rows)), dim=1, largest=False)
            joined = torch.cat([so_far, near.values], 1).topk(k, dim=1, largest=False)
            names = torch.cat([so_far_whose, own[near.indices]], 1).gather(1, joined.indices)
            so_far.copy_(joined.values)
            so_far_whose.copy_(names)
    return found, whose


def _nearest_of_all(distances: Tensor, labels: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k nearest among all ranks' k nearest, without gathering the features."""
    ranks = dist.get_world_size()
    all_distances = [torch.empty_like(distances) for _ in range(ranks)]
    all_labels = [torch.empty_like(labels) for _ in range(ranks)]
    dist.all_gather(all_distances, distances)
    dist.all_gather(all_labels, labels)
    joined = torch.cat(all_distances, 1)
    nearest = joined.topk(k, dim=1, largest=False)
    return nearest.values, torch.cat(all_labels, 1).gather(1, nearest.indices)


def _majority(labels: Tensor, distances: Tensor, classes: int) -> Tensor:
    """The most frequent label of each row; on ties, the smallest."""
    votes = torch.zeros(len(labels), classes, dtype=torch.int64, device=labels.device)
    votes.scatter_add_(1, labels, torch.isfinite(distances).long())
    return votes.argmax(1)  # the first of equal values


def knn_accuracy(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    k: int = 5,
    ranks: Ranks | None = None,
) -> float:
    """Accuracy of :func:`knn_predict` on test features, in percent.

    Args:
        train: features (n, width), this rank's part.
        train_labels: (n,).
        test: features (m, width), this rank's part.
        test_labels: (m,).
        k: neighbors.
        ranks: this process's place, if it is one of several.

    Returns:
        Accuracy from 0 to 100, the same on every rank.

    Raises:
        ValueError: if there are no training or no test features, or one is NaN or infinite.
    """
    if ranks is not None and ranks.world_size > 1:
        parts = ranks.gather_objects((test.cpu(), test_labels.cpu()))
        test = torch.cat([features for features, _ in parts]).to(train.device)
        test_labels = torch.cat([labels for _, labels in parts]).to(train.device)
    if not len(test):
        raise ValueError("no test features; expected at least one")
    predicted = knn_predict(train, train_labels, test, k, ranks)
    return 100 * float((predicted == test_labels).double().mean())
