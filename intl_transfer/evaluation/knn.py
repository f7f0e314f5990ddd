"""k nearest neighbors on frozen features, over ranks."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from intl_transfer.runs.distributed import Ranks

_CHUNK = 1024  # queries at a time
_BLOCK = 8192  # training features at a time
_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


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

    Of identical features those of the smallest labels are the nearest, so that neither the order of
    the images nor the ranks that hold them decide. (scikit-learn leaves that to the order.)

    Args:
        train: features (n, width); with several ranks this rank's part, of any length.
        train_labels: (n,), whole numbers of any size and integer type.
        queries: features (q, width), the same on every rank.
        k: neighbors; fewer if there are not enough.
        ranks: this process's place, if it is one of several.

    Returns:
        A label for each query, (q,), int64, the same on every rank.

    Raises:
        ValueError: for shapes that do not belong together, if there is no training feature on any
            rank, k is below 1, or a feature is NaN or infinite.
        TypeError: if features are no real numbers, or labels or k no integers.

    Example:
        >>> import torch
        >>> train = torch.tensor([[0.0], [0.1], [1.0]])
        >>> knn_predict(train, torch.tensor([4, 4, 7]), torch.tensor([[0.0], [0.9]]), k=1)
        tensor([4, 7])
    """
    _check_count(k)
    _check_labeled(train, train_labels, "train")
    _check_features(queries, "queries")
    if queries.shape[1] != train.shape[1]:
        raise ValueError(
            f"queries have width {queries.shape[1]} and training features {train.shape[1]}; "
            "expected features of one network"
        )
    if ranks is not None and ranks.world_size == 1:
        ranks = None
    known = _Distinct.of(train, train_labels, ranks)
    if known is None:
        raise ValueError("no training features; k nearest neighbors need at least one")
    train, queries = _within_range(train, queries, ranks is not None)
    origin = _mean(train, ranks is not None)
    # A sum over all ranks' features: every rank raises, or none does.
    if not bool(origin.isfinite().all()) or not bool(queries.isfinite().all()):
        raise ValueError("features contain NaN or infinity; they have no nearest neighbors")
    predictions = []
    found = _nearest(train, known, queries.double() - origin, origin, k)
    for distances, numbers in zip(*(torch.split(of_all, _CHUNK) for of_all in found), strict=True):
        if ranks is not None:
            distances, numbers = _nearest_of_all(distances, numbers, k)
        predictions.append(known.majority(distances, numbers, k))
    return torch.cat(predictions) if predictions else queries.new_zeros(0, dtype=torch.int64)


def _check_count(k: int) -> None:
    if isinstance(k, bool) or not isinstance(k, int):
        raise TypeError(f"k is {k!r}; expected a whole number of neighbors")
    if k < 1:
        raise ValueError(f"k is {k}; expected at least 1 neighbor")


def _check_features(features: Tensor, name: str) -> None:
    if not isinstance(features, Tensor) or features.is_complex():
        found = features.dtype if isinstance(features, Tensor) else type(features).__name__
        raise TypeError(
            f"{name}: expected a torch.Tensor of real numbers (n, width), found {found}"
        )
    if features.dim() != 2 or features.shape[1] < 1:
        raise ValueError(f"{name}: expected shape (n, width), found {tuple(features.shape)}")


def _check_labeled(features: Tensor, labels: Tensor, name: str) -> None:
    """Raises unless they are features (n, width) and integers (n,)."""
    _check_features(features, name)
    is_tensor = isinstance(labels, Tensor)
    if not is_tensor or labels.dtype not in _INTEGERS:
        found = labels.dtype if is_tensor else type(labels).__name__
        raise TypeError(f"{name}_labels: expected a torch.Tensor of integers (n,), found {found}")
    if labels.shape != features.shape[:1]:
        raise ValueError(
            f"{name}_labels have shape {tuple(labels.shape)}; expected ({len(features)},), one for "
            "each feature"
        )


def _within_range(train: Tensor, queries: Tensor, several: bool) -> tuple[Tensor, Tensor]:
    """Float64 features times a power of two, so that no square overflows or vanishes.

    That changes no digit of them or of their distances. Squares of other types are in float64's
    range anyway.
    """
    if torch.float64 not in (train.dtype, queries.dtype):
        return train, queries
    largest = queries.new_zeros(1, dtype=torch.float64)
    for features in (train, queries):
        if features.numel():
            largest = torch.maximum(largest, features.abs().max().double())
    if several:
        dist.all_reduce(largest, dist.ReduceOp.MAX)
    # Of 0, infinity or NaN the exponent is 0.
    exponent = int(torch.frexp(largest)[1].clamp(-1022, 1022))
    scale = math.ldexp(1.0, -exponent)
    return train.double() * scale, queries.double() * scale


@dataclass(frozen=True)
class _Distinct:
    """The distinct features of all ranks, each with the labels of all images that have it.

    A distance is computed once for each. Of equal features in two blocks of a product, or on two
    ranks, rounding may make it two, and which of them was nearer depended on the layout.

    Attributes:
        rows: of this rank's features, those that stand for one of them; each is one rank's.
        numbers: which they are, ascending. Features are numbered by their smallest label.
        starts: of each feature, of any rank, the position of its first label.
        counts: the number of its labels.
        labels: of all images, by feature, then ascending; numbers of ``classes``.
        classes: the labels that occur, ascending.
    """

    rows: Tensor
    numbers: Tensor
    starts: Tensor
    counts: Tensor
    labels: Tensor
    classes: Tensor

    @classmethod
    def of(cls, train: Tensor, labels: Tensor, ranks: Ranks | None) -> _Distinct | None:
        """Those of all ranks' features; None if there is none."""
        own = _keys(train).cpu(), labels.cpu().long()
        parts = [own] if ranks is None else ranks.gather_objects(own)
        keys, whose = (torch.cat([part[i] for part in parts]).numpy() for i in (0, 1))
        if not len(keys):
            return None
        classes, whose = np.unique(whose, return_inverse=True)
        order = np.lexsort((whose, keys))
        _, starts, counts = np.unique(keys[order], return_index=True, return_counts=True)
        by_label = whose[order[starts]].argsort(kind="stable")
        starts, counts = starts[by_label], counts[by_label]
        first = sum(len(part[0]) for part in parts[: 0 if ranks is None else ranks.rank])
        rows = order[starts] - first
        numbers = np.flatnonzero((rows >= 0) & (rows < len(train)))
        arrays = (rows[numbers], numbers, starts, counts, whose[order], classes)
        return cls(*(torch.from_numpy(array).to(train.device) for array in arrays))

    def majority(self, distances: Tensor, numbers: Tensor, k: int) -> Tensor:
        """The most frequent label of the k nearest images; on ties, the smallest.

        Args:
            distances: of the nearest features, (q, k), nearest first; infinite if there are fewer.
            numbers: which they are.
            k: images.
        """
        counts = self.counts[numbers] * distances.isfinite()
        used = torch.minimum(counts, (k - counts.cumsum(1) + counts).clamp(min=0))
        shape = len(numbers), len(self.classes)
        votes = torch.zeros(shape, dtype=torch.int64, device=numbers.device)
        for place in range(int(used.max()) if len(used) else 0):  # one, where no two are identical
            at = self.starts[numbers] + self.counts[numbers].sub(1).clamp(max=place)
            votes.scatter_add_(1, self.labels[at], (used > place).long())
        return self.classes[votes.argmax(1)]  # the first of equal values


def _keys(features: Tensor) -> Tensor:
    """A number of 64 bits for each row, the same on any device and equal for equal rows.

    They are sums of random multiples of the bits. That any two of a million different rows have one
    number has a probability far below 1 in 10,000.
    """
    width = features.shape[1]
    drawn = np.random.default_rng(0).integers(-(2**63), 2**63, (2, width), np.int64) | 1
    factors, weights = torch.from_numpy(drawn).to(features.device)
    keys = [torch.zeros(0, dtype=torch.int64, device=features.device)]
    for block in torch.split(features, _CHUNK):
        bits = (block.double() + 0.0).view(torch.int64)  # -0.0 is 0.0
        # Of a float32 in float64 the low bits are zero: the product alone would lose the high ones.
        mixed = (bits ^ (bits >> 32)) * factors
        keys.append(((mixed ^ (mixed >> 32)) * weights).sum(1))
    return torch.cat(keys)


def _mean(train: Tensor, several: bool) -> Tensor:
    """The mean of all ranks' training features, (width,), float64."""
    total = train.sum(0, dtype=torch.float64)
    count = torch.tensor([len(train)], dtype=torch.float64, device=total.device)
    if several:
        dist.all_reduce(total)
        dist.all_reduce(count)
    return total / count


def _nearest(
    train: Tensor, known: _Distinct, queries: Tensor, origin: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    """Squared distances and numbers of features (q, k), nearest first; infinite if there are fewer.

    Args:
        train: features (n, width), of any precision.
        known: which of them to search.
        queries: float64 (q, width), seen from the origin.
        origin: (width,): near to all features, distances lose least.
        k: neighbors.
    """
    found = queries.new_full((len(queries), k), float("inf"))
    which = torch.zeros(len(queries), k, dtype=torch.int64, device=queries.device)
    lengths = queries.square().sum(1, keepdim=True)
    chunks = [torch.split(of_all, _CHUNK) for of_all in (queries, lengths, found, which)]
    for block, own in zip(
        torch.split(known.rows, _BLOCK), torch.split(known.numbers, _BLOCK), strict=True
    ):
        rows = train[block].double() - origin  # once for all queries
        lengths_of_rows = rows.square().sum(1)
        for chunk, length, so_far, so_far_which in zip(*chunks, strict=True):
            squared = (chunk @ rows.T).mul_(-2).add_(length).add_(lengths_of_rows)
            values, columns = _smallest(squared, k)
            nearest = _first(
                torch.cat([so_far, values], 1), torch.cat([so_far_which, own[columns]], 1), k
            )
            so_far.copy_(nearest[0])
            so_far_which.copy_(nearest[1])
    return found, which


def _smallest(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k smallest of each row and their columns; of equal ones, those of the first columns."""
    found, columns = values.topk(min(k + 1, values.shape[1]), dim=1, largest=False)
    if values.shape[1] > k:
        unclear = found[:, k] == found[:, k - 1]
        if bool(unclear.any()):
            columns[unclear] = values[unclear].argsort(dim=1, stable=True)[:, : k + 1]
    return found[:, :k], columns[:, :k]


def _first(distances: Tensor, numbers: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The first k of each row by distance, of equal ones by number."""
    by_number = numbers.argsort(dim=1)
    ordered = distances.gather(1, by_number).sort(dim=1, stable=True)
    indices = by_number.gather(1, ordered.indices[:, :k])
    return ordered.values[:, :k], numbers.gather(1, indices)


def _nearest_of_all(distances: Tensor, numbers: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k nearest among all ranks' k nearest, without gathering the features."""
    parts = []
    for own in (distances, numbers):
        everyones = [torch.empty_like(own) for _ in range(dist.get_world_size())]
        dist.all_gather(everyones, own.contiguous())
        parts.append(torch.cat(everyones, 1))
    return _first(parts[0], parts[1], k)


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
        ValueError: if there are no training or no test features, and as :func:`knn_predict`.
        TypeError: as :func:`knn_predict`.
    """
    _check_labeled(test, test_labels, "test")
    if ranks is not None and ranks.world_size > 1:
        parts = ranks.gather_objects((test.cpu(), test_labels.cpu()))
        test = torch.cat([features for features, _ in parts]).to(train.device)
        test_labels = torch.cat([labels for _, labels in parts]).to(train.device)
    if not len(test):
        raise ValueError("no test features; expected at least one")
    predicted = knn_predict(train, train_labels, test, k, ranks)
    return 100 * float((predicted == test_labels).double().mean())
