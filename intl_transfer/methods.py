"""Pretraining methods, one row each: name, title, loss, options, target.

Everything that depends on ``loss.method`` uses the row in :data:`METHODS`: the loss, a
moving-average target, checks of options, titles in tables. A new method is a file with its loss
(see ``intl_transfer/spectral/baselines/``) and a row in this table.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from torch import Tensor

from intl_transfer.spectral import (
    IterNorm,
    PowerTransform,
    ScalarTransform,
    SpectralTransform,
    barlow_twins_loss,
    default_trace_weight,
    intl_ema_loss,
    intl_loss,
    nt_xent_loss,
    scalar_expression,
    spectral_ema_loss,
    spectral_loss,
    vicreg_loss,
    w_mse_loss,
    without_waiting,
)
from intl_transfer.spectral.iternorm import NEWTON_UP_TO
from intl_transfer.spectral.matrix_function import FLOOR

#: Keywords of losses that are not settings, such as inputs and the process group.
_NOT_OPTIONS = ("group", "distributed", "generator", "partitions")


class LossSettings(Protocol):
    """The part of ``loss`` (:class:`pretrain.config.LossConfig`) that rows use."""

    @property
    def axis(self) -> Any:
        """``channel`` or ``batch``."""

    @property
    def iterations(self) -> int:
        """T of IterNorm."""

    @property
    def stable(self) -> bool:
        """False for the direct form of IterNorm's iteration."""

    @property
    def trace_weight(self) -> float | None:
        """Beta; None for the method's default."""

    @property
    def g(self) -> str | None:
        """A function of an eigenvalue, as a formula in x."""

    @property
    def options(self) -> Mapping[str, float]:
        """Keywords of the method's loss."""


#: Views (N, d) of this rank, view 0 the target; settings; the global batch size; and a mapping that
#: takes the parts of the loss for logs. Gives the loss of the global batch, a scalar.
Loss = Callable[[Sequence[Tensor], LossSettings, int, dict[str, Tensor]], Tensor]


@dataclass(frozen=True)
class Option:
    """One keyword of a method's loss, ``loss.options.NAME``.

    Attributes:
        default: None for the loss's own.
        expected: description of valid values, for messages.
        is_good: whether a finite value is valid.
        required: for a required option, its description.
        kind: type for the loss; configurations contain floats.
    """

    default: float | None = None
    expected: str = "a finite number"
    is_good: Callable[[float], bool] = math.isfinite
    required: str | None = None
    kind: Callable[[float], float] = float


@dataclass(frozen=True)
class Method:
    """One pretraining method.

    Attributes:
        name: of ``loss.method``.
        title: in tables, without additions for settings (:meth:`title_under`).
        loss: embeddings to a scalar.
        options: allowed keys of ``loss.options``, by name.
        has_target: whether view 0 goes through a moving-average copy of the network.
        transform: makes its spectral transformation from settings; None for a method without one.
            Raises ValueError for invalid options or formulas.
        is_iternorm: whether it uses ``loss.iterations`` and ``loss.stable``, and includes the trace
            loss, by default with the published weight.
        takes_g: whether it uses ``loss.g``.
        variant: its title for a configuration's ``loss``, if settings change it.
    """

    name: str
    title: str
    loss: Loss
    options: Mapping[str, Option] = field(default_factory=dict)
    has_target: bool = False
    transform: Callable[[LossSettings], SpectralTransform] | None = None
    is_iternorm: bool = False
    takes_g: bool = False
    variant: Callable[[Mapping[str, Any]], str] | None = None

    def transform_under(self, settings: LossSettings) -> SpectralTransform | None:
        """The spectral transformation under given settings; None for a method without one.

        Raises:
            ValueError: for invalid options or formulas.
        """
        return None if self.transform is None else self.transform(settings)

    @property
    def full_title(self) -> str:
        """The title, with the moving average if there is one: ``INTL + EMA``."""
        return f"{self.title} + EMA" if self.has_target else self.title

    def title_under(self, loss: Mapping[str, Any]) -> str:
        """The title in tables under given settings.

        Args:
            loss: the part ``loss`` of a configuration, which may lack keys.
        """
        parts = [self.title if self.variant is None else self.variant(loss)]
        if self.has_target:
            parts.append("EMA")
        if self.transform is not None and not self.is_iternorm and loss.get("trace_weight"):
            parts.append("trace loss")
        return " + ".join(parts)


#: Options by the type of their keyword; for others any finite number.
_OF_TYPE = {
    "int": Option(None, "a whole number", lambda value: float(value).is_integer(), kind=int),
    "bool": Option(None, "0 or 1", lambda value: value in (0, 1), kind=bool),
}


def by_name(rows: Iterable[Method]) -> dict[str, Method]:
    """A table of methods.

    Raises:
        ValueError: for two rows of one name, of which one would be lost.
    """
    table: dict[str, Method] = {}
    for row in rows:
        if row.name in table:
            raise ValueError(f"two methods are named '{row.name}'; loss.method needs one of them")
        table[row.name] = row
    return table


def _of_keywords(function: Callable[..., Tensor], options: Mapping[str, Option]) -> Loss:
    """Adapts a function of views and keywords to a row's loss."""

    def loss(
        views: Sequence[Tensor], settings: LossSettings, batch_size: int, parts: dict[str, Tensor]
    ) -> Tensor:
        given = settings.options.items()
        return function(views, **{name: options[name].kind(value) for name, value in given})

    return loss


def comparison(
    name: str,
    title: str,
    function: Callable[..., Tensor],
    has_target: bool = False,
    **known: Option,
) -> Method:
    """The row of a method whose loss is a function of views and keywords.

    Args:
        name: of ``loss.method``.
        title: in tables.
        function: called as ``function(views, **options)``; its keywords that take numbers, with
            their defaults, are the method's options. One without a default is required.
        has_target: whether view 0 goes through a moving-average copy of the network.
        known: options with more details than the default.
    """
    _, *keywords = inspect.signature(function).parameters.values()  # the first takes the views
    options = {
        one.name: _option(one, known.get(one.name)) for one in keywords if _takes_numbers(one)
    }
    return Method(name, title, _of_keywords(function, options), options, has_target)


def _takes_numbers(keyword: inspect.Parameter) -> bool:
    """Whether a keyword of a loss can be set as ``loss.options.NAME``."""
    named = keyword.kind in (keyword.POSITIONAL_OR_KEYWORD, keyword.KEYWORD_ONLY)
    default = keyword.default
    numeric = default is None or default is keyword.empty or isinstance(default, (int, float))
    return named and numeric and keyword.name not in _NOT_OPTIONS


def _option(keyword: inspect.Parameter, known: Option | None) -> Option:
    """The option that a keyword is: what is known of it, or what its type says."""
    declared, default = keyword.annotation, keyword.default
    if declared is keyword.empty:
        declared = type(default)
    option = known or _OF_TYPE.get(getattr(declared, "__name__", declared), Option())
    if default is keyword.empty:
        return replace(option, required=option.required or f"loss.options.{keyword.name}")
    return replace(option, default=default)


def framework_loss(
    views: Sequence[Tensor],
    transform: SpectralTransform,
    weight: float,
    has_target: bool,
    parts: dict[str, Tensor],
) -> Tensor:
    """The framework's loss of V views (N, d), view 0 the target, on a transformation's outputs."""
    if has_target:
        return spectral_ema_loss(views[1:], views[0], transform, weight, parts=parts)
    return spectral_loss(views, transform, weight, parts=parts)


def _of_transform(transform: Callable[[LossSettings], SpectralTransform], has_target: bool) -> Loss:
    """The framework's loss, with trace loss if the settings weight it."""

    def loss(
        views: Sequence[Tensor], settings: LossSettings, batch_size: int, parts: dict[str, Tensor]
    ) -> Tensor:
        weight = settings.trace_weight or 0.0
        return framework_loss(views, transform(settings), weight, has_target, parts)

    return loss


def _of_iternorm(has_target: bool) -> Loss:
    """INTL, or the framework's loss of IterNorm's direct iteration."""

    def loss(
        views: Sequence[Tensor], settings: LossSettings, batch_size: int, parts: dict[str, Tensor]
    ) -> Tensor:
        if not settings.stable:
            weight = settings.trace_weight
            if weight is None:
                weight = default_trace_weight(batch_size, views[0].shape[1], settings.axis)
            return framework_loss(views, _iternorm(settings), weight, has_target, parts)
        given = (settings.axis, settings.iterations, settings.trace_weight)
        newton = settings.iterations <= NEWTON_UP_TO
        with without_waiting() if newton else nullcontext():
            if has_target:
                return intl_ema_loss(views[1:], views[0], *given, parts=parts)
            return intl_loss(views, *given, parts=parts)

    return loss


def _iternorm(settings: LossSettings) -> SpectralTransform:
    return IterNorm(settings.iterations, settings.axis, settings.stable)


def _power(settings: LossSettings) -> SpectralTransform:
    floor = settings.options.get("floor", FLOOR)
    return PowerTransform(settings.options["p"], settings.axis, floor)


def _scalar(settings: LossSettings) -> SpectralTransform:
    floor = settings.options.get("floor", FLOOR)
    return ScalarTransform(scalar_expression(settings.g or ""), settings.axis, floor=floor)


def _with_and_without_target(name: str, title: str, **known: Any) -> Iterator[Method]:
    """Two rows: gradients through every view, and view 0 through a moving-average copy."""
    make = known.pop("make")
    yield Method(name, title, make(False), **known)
    yield Method(f"{name}_ema", title, make(True), has_target=True, **known)


def _intl_title(loss: Mapping[str, Any]) -> str:
    """The title of IterNorm; without the trace loss it is not INTL."""
    return "IterNorm" if loss.get("trace_weight") == 0 else "INTL"


def _with_function(title: str) -> Callable[[Mapping[str, Any]], str]:
    """The title with the exponent of a power function, or the formula of another."""

    def variant(loss: Mapping[str, Any]) -> str:
        power, formula = (loss.get("options") or {}).get("p"), loss.get("g")
        if power is not None:
            return f"{title} p = {power:g}"
        return f"{title} g(x) = {formula}" if formula else title

    return variant


_FLOOR = Option(FLOOR, "a fraction of the trace, a number >= 0", lambda floor: floor >= 0)
_EXPONENT = Option(required="an exponent, for example loss.options.p=0.5")  # the rest: see _power
_COUNT = Option(None, "a whole number >= 1", lambda n: n >= 1 and float(n).is_integer(), kind=int)
_SHARE = Option(None, "a number from 0 to 1", lambda share: 0 <= share <= 1)
_POSITIVE = Option(None, "a number > 0", lambda value: value > 0)
_WEIGHT = Option(None, "a number >= 0", lambda value: value >= 0)

#: All methods by name, in the order of tables and messages.
METHODS: dict[str, Method] = by_name(
    (
        *_with_and_without_target(
            "intl",
            "INTL",
            make=_of_iternorm,
            transform=_iternorm,
            is_iternorm=True,
            variant=_intl_title,
        ),
        *_with_and_without_target(
            "power",
            "Spectral power",
            make=lambda has_target: _of_transform(_power, has_target),
            options={"p": _EXPONENT, "floor": _FLOOR},
            transform=_power,
            variant=_with_function("Spectral power"),
        ),
        *_with_and_without_target(
            "spectral",
            "Spectral transformation",
            make=lambda has_target: _of_transform(_scalar, has_target),
            options={"floor": _FLOOR},
            transform=_scalar,
            takes_g=True,
            variant=_with_function("Spectral transformation"),
        ),
        comparison("w_mse", "W-MSE", w_mse_loss, whitening_size=_COUNT, shrinkage=_SHARE),
        comparison(
            "barlow_twins",
            "Barlow Twins",
            barlow_twins_loss,
            off_diagonal_weight=_WEIGHT,
            eps=_POSITIVE,
        ),
        comparison(
            "vicreg",
            "VICReg",
            vicreg_loss,
            invariance_weight=_WEIGHT,
            variance_weight=_WEIGHT,
            covariance_weight=_WEIGHT,
            eps=_POSITIVE,
        ),
        comparison("simclr", "SimCLR", nt_xent_loss, temperature=_POSITIVE),
    )
)
