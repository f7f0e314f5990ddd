"""Image preprocessing of weights, and the corresponding settings of Detectron2."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from intl_transfer.conversion.evidence import ASSUMED, Source
from intl_transfer.data.statistics import STATISTICS, Statistics

Channels = Literal["RGB", "BGR"]


@dataclass(frozen=True)
class Settings:
    """A network's image preprocessing, which cannot be inferred from its weights.

    Attributes:
        channels: order of the color channels.
        pixel_mean: subtracted from pixels of 0 to 255, in that order.
        pixel_std: divisor, after subtraction.
        stride_in_1x1: whether a bottleneck strides in its first 1x1 convolution, as Caffe's
            networks do; torchvision's stride in the 3x3.
        pixels_source: evidence for mean and deviation.
        channels_source: evidence for the channel order.
        strides_source: evidence for the strides.
    """

    channels: Channels
    pixel_mean: tuple[float, float, float]
    pixel_std: tuple[float, float, float]
    stride_in_1x1: bool = False
    pixels_source: Source = ASSUMED
    channels_source: Source = ASSUMED
    strides_source: Source = ASSUMED

    @property
    def source(self) -> str | None:
        """The evidence for mean, deviation and channel order, as text; None if assumed."""
        sources = (self.pixels_source, self.channels_source)
        if any(source.is_assumed for source in sources):
            return None
        return "; ".join(dict.fromkeys(source.detail or str(source) for source in sources))

    def sources(self) -> dict[str, Source]:
        """By the names of :data:`intl_transfer.conversion.evidence.FACTS`."""
        return {
            "pixels": self.pixels_source,
            "channels": self.channels_source,
            "strides": self.strides_source,
        }

    def known_by(self, source: Source, strides: Source | None = None) -> Settings:
        """The same settings, all from one source.

        Args:
            source: of all settings.
            strides: source of the strides, if different.
        """
        return replace(
            self,
            pixels_source=source,
            channels_source=source,
            strides_source=strides or source,
        )

    def completed_by(self, other: Settings) -> Settings:
        """These settings, with what others know better.

        Mean and deviation are in the order of their channels, and come with it.

        Args:
            other: the others.
        """
        ours, theirs = self, other
        if theirs.pixels_source.rank > ours.pixels_source.rank:
            ours = replace(
                ours,
                pixel_mean=theirs.pixel_mean,
                pixel_std=theirs.pixel_std,
                pixels_source=theirs.pixels_source,
                channels=theirs.channels,
                channels_source=theirs.channels_source,
            )
        elif (
            ours.pixels_source.is_assumed
            and theirs.channels_source.rank > ours.channels_source.rank
        ):
            if theirs.channels != ours.channels:
                mean, std = ((c, b, a) for a, b, c in (ours.pixel_mean, ours.pixel_std))
                ours = replace(ours, pixel_mean=mean, pixel_std=std)
            ours = replace(ours, channels=theirs.channels, channels_source=theirs.channels_source)
        if theirs.strides_source.rank > ours.strides_source.rank:
            ours = replace(
                ours, stride_in_1x1=theirs.stride_in_1x1, strides_source=theirs.strides_source
            )
        return ours

    def described(self) -> dict[str, Any]:
        """Channels, mean and deviation, for records."""
        mean, std = list(self.pixel_mean), list(self.pixel_std)
        return {"channels": self.channels, "mean": mean, "std": std}


def from_statistics(statistics: Statistics, source: Source = ASSUMED) -> Settings:
    """RGB images normalized by a data set's statistics.

    Args:
        statistics: for channels from 0 to 1.
        source: their evidence.
    """
    mean, std = (
        (round(255 * r, 6), round(255 * g, 6), round(255 * b, 6))
        for r, g, b in (statistics.mean, statistics.std)
    )
    return Settings("RGB", mean, std).known_by(source)


# torchvision's normalization, for pixels of 0 to 255, used by nearly all methods.
IMAGENET = from_statistics(STATISTICS["imagenet"])
# Pixels of 0 to 1 without normalization (only `ToTensor`): Google's SimCLR, and small
# reproductions.
UNIT = Settings("RGB", (0.0, 0.0, 0.0), (255.0, 255.0, 255.0))
# MSRA's networks, which came from Caffe: Detectron2's default.
CAFFE = Settings("BGR", (103.53, 116.28, 123.675), (1.0, 1.0, 1.0), True)

#: By the names that a user gives them.
PIXELS = {
    **{name: from_statistics(statistics) for name, statistics in STATISTICS.items()},
    "unit": UNIT,
    "caffe": CAFFE,
}


def config_values(architecture: str, settings: Settings = IMAGENET) -> dict[str, Any]:
    """The keys of a Detectron2 configuration that belong to converted weights.

    Args:
        architecture: ``resnet18`` to ``resnet152`` or ``wide_resnet50_2``.
        settings: how the network takes its images.
    """
    depth = 50 if architecture == "wide_resnet50_2" else int(architecture.removeprefix("resnet"))
    return {
        "INPUT.FORMAT": settings.channels,
        "MODEL.PIXEL_MEAN": list(settings.pixel_mean),
        "MODEL.PIXEL_STD": list(settings.pixel_std),
        "MODEL.RESNETS.DEPTH": depth,
        "MODEL.RESNETS.STRIDE_IN_1X1": settings.stride_in_1x1,
        "MODEL.RESNETS.RES2_OUT_CHANNELS": 64 if depth < 50 else 256,
        "MODEL.RESNETS.WIDTH_PER_GROUP": 128 if architecture == "wide_resnet50_2" else 64,
    }


def from_config(values: dict[str, Any], source: Source) -> Settings | None:
    """Settings from Detectron2 keys; None if one is missing or invalid.

    Args:
        values: by dotted key, as from :func:`config_values`.
        source: of the values.
    """
    try:
        channels = str(values["INPUT.FORMAT"])
        if channels not in ("RGB", "BGR"):
            return None
        mean, std = (
            tuple(float(value) for value in values[f"MODEL.PIXEL_{name}"])
            for name in ("MEAN", "STD")
        )
        stride = values["MODEL.RESNETS.STRIDE_IN_1X1"]
    except (KeyError, TypeError, ValueError):
        return None
    if len(mean) != 3 or len(std) != 3 or not isinstance(stride, bool):
        return None
    return Settings("RGB" if channels == "RGB" else "BGR", mean, std, stride).known_by(source)
