"""k nearest neighbors on frozen features, over ranks."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from intl_transfer.runs.distributed import Ranks

_CHUNK = 1024  # queries at a time


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
    smallest label, as in scikit-learn. For precision, the mean of the training features is
    subtracted before computing distances.

    Args:
        train: features (n, width); with several ranks this rank's part, of any length.
        train_labels: (n,), int64.
        queries: features (q, width), the same on every rank.
        k: neighbors; fewer if there are not enough.
        ranks: this process's place, if it is one of several.

    Returns:
        A label for each query, (q,), the same on every rank.

    Raises:
        ValueError: if there is no training feature on any rank, or k is below 1.

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
    origin = _mean(train, queries, several)
    train = train - origin
    predictions = []
    for chunk in torch.split(queries, _CHUNK):
        distances, labels = _nearest(train, train_labels, chunk - origin, k)
        if several:
            distances, labels = _nearest_of_all(distances, labels, k)
        predictions.append(_majority(labels, distances, classes))
    return torch.cat(predictions) if predictions else queries.new_zeros(0, dtype=torch.int64)


def _mean(train: Tensor, queries: Tensor, several: bool) -> Tensor:
    """The mean of all ranks' training features, (width,), in the features' precision."""
    total = train.sum(0, dtype=torch.float64)
    count = torch.tensor([len(train)], dtype=torch.float64, device=total.device)
    if several:
        dist.all_reduce(total)
        dist.all_reduce(count)
    return (total / count).to(queries.dtype)


def _nearest(train: Tensor, labels: Tensor, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Distances and labels (q, k), nearest first; infinite distances if there are fewer."""
    found = torch.full((len(queries), k), float("inf"), device=queries.device)
    whose = torch.zeros(len(queries), k, dtype=torch.int64, device=queries.device)
    if len(train):
        count = min(k, len(train))
        distances = torch.cdist(queries, train, compute_mode="use_mm_for_euclid_dist")
        nearest = distances.topk(count, dim=1, largest=False)
        found[:, :count] = nearest.values
        whose[:, :count] = labels[nearest.indices]
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
        ValueError: if there are no training or no test features.
    """
    if ranks is not None and ranks.world_size > 1:
        parts = ranks.gather_objects((test.cpu(), test_labels.cpu()))
        test = torch.cat([features for features, _ in parts]).to(train.device)
        test_labels = torch.cat([labels for _, labels in parts]).to(train.device)
    if not len(test):
        raise ValueError("no test features; expected at least one")
    predicted = knn_predict(train, train_labels, test, k, ranks)
    return 100 * float((predicted == test_labels).double().mean())
