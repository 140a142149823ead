# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""What augmentation is drawn from: policies, settings, and the presets of the recipes."""

import math
import re
from dataclasses import dataclass

from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD


@dataclass(frozen=True)
class RandAugment:
    """The parts of a string such as `rand-m7-n4-mstd0.5-inc1`, read by `parse`.

    Args:
        magnitude: m, mean of the normal draw of an operation's strength, 0 to 10.
        num_ops: n, operations drawn, with replacement.
        magnitude_std: mstd, standard deviation of the strength; the draw is clipped to 0..10.
        probability: p, that a drawn operation is applied.
    """

    magnitude: float
    num_ops: int
    magnitude_std: float = 0.0
    probability: float = 0.5

    def __post_init__(self):
        if not 0 <= self.magnitude <= 10 or not 0 <= self.probability <= 1 or self.num_ops < 1:
            raise ValueError(f"RandAugment needs m in 0..10, n of at least 1 and p in 0..1, got {self}")

    @classmethod
    def parse(cls, text: str) -> "RandAugment":
        """Reads the string form; `m`, `n` and `inc1` (the operations that grow with m) must be there, `mstd`, `p` may.

        Raises:
            ValueError: another part, a part twice, one missing, or a value out of range.
        """
        head, *parts = text.split("-")
        matches = [re.fullmatch(r"(mstd|inc|m|n|p)(\d+(?:\.\d+)?)", part) for part in parts]
        values = {match[1]: match[2] for match in matches if match}
        if head != "rand" or len(values) != len(parts) or not {"m", "n"} <= set(values) or values.get("inc") != "1":
            raise ValueError(
                f"rand_augment must be like 'rand-m7-n4-mstd0.5-inc1' (m, n and inc1 given, mstd and p optional), "
                f"got {text!r}"
            )
        if not values["n"].isdigit():
            raise ValueError(f"n of rand_augment must be a whole number, got {text!r}")
        numbers = {name: float(value) for name, value in values.items()}
        return cls(numbers["m"], int(values["n"]), numbers.get("mstd", 0.0), numbers.get("p", 0.5))


@dataclass(frozen=True)
class AugmentConfig:
    """How a clip is augmented. Pairs are the ends of a draw.

    Args:
        rand_augment: RandAugment as a string (`RandAugment.parse`), or None.
        brightness: Brightness is multiplied by a uniform draw from 1 - brightness to 1 + brightness; 0: left alone.
        contrast: The same for contrast. Both come after RandAugment.
        crop_scale: Area of the random crop, as a part of the frame's; None: the short side is resized to the size asked
            for and the centre is cropped, as the processor does.
        crop_ratio: Width by height of the random crop; the draw is uniform in its logarithm.
        crop_scales: In place of crop_scale and crop_ratio: parts of the short side that a crop's width and height are
            drawn from, at most one step apart, rising (multi-scale crop); it lies at one of 13 fixed places.
        hflip: Probability of mirroring left and right.
        erasing: Probability of filling a box with noise.
        erasing_area: Area of that box, as a part of the crop's.
        erasing_ratio: Height by width of that box; the draw is uniform in its logarithm.
        fill: Level of each channel where rotation, shear and translation look beyond the frame.
        mean: Of each channel, subtracted after division by 255.
        std: Of each channel, divided by after that.
    """

    rand_augment: str | None = None
    brightness: float = 0.0
    contrast: float = 0.0
    crop_scale: tuple[float, float] | None = (0.08, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    crop_scales: tuple[float, ...] = ()
    hflip: float = 0.5
    erasing: float = 0.25
    erasing_area: tuple[float, float] = (0.02, 1 / 3)
    erasing_ratio: tuple[float, float] = (0.3, 1 / 0.3)
    fill: tuple[int, int, int] = (128, 128, 128)
    mean: tuple[float, float, float] = tuple(IMAGENET_DEFAULT_MEAN)
    std: tuple[float, float, float] = tuple(IMAGENET_DEFAULT_STD)

    def __post_init__(self):
        if self.rand_augment is not None:
            RandAugment.parse(self.rand_augment)
        for name in ("hflip", "erasing", "brightness", "contrast"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in 0..1, got {getattr(self, name)}")
        limits = {"crop_scale": 1, "crop_ratio": math.inf, "erasing_area": 1, "erasing_ratio": math.inf}
        for name, limit in limits.items():
            ends = getattr(self, name)
            if ends is None and name == "crop_scale":
                continue
            if len(ends) != 2 or not 0 < ends[0] <= ends[1] <= limit:
                raise ValueError(f"{name} must be two values above 0 and at most {limit}, the lower first, got {ends}")
        scales = self.crop_scales
        if list(scales) != sorted(set(scales)) or (scales and not 0 < scales[0] <= scales[-1] <= 1):
            raise ValueError(f"crop_scales must be rising values above 0 and at most 1, got {scales}")
        for name in ("fill", "mean", "std"):
            if len(getattr(self, name)) != 3:
                raise ValueError(f"{name} must have one value a channel, got {getattr(self, name)}")
        if min(self.std) <= 0 or not 0 <= min(self.fill) <= max(self.fill) <= 255:
            raise ValueError(f"std must be above 0 and fill lie in 0..255, got std={self.std} and fill={self.fill}")


# "released": the defaults of the official fine-tuning code. "paper": table 15 says RandAug(9, 0.5); read as magnitude 9
# with deviation 0.5, all else as released, which is inferred. "light" is ours: for small sets, and for classes that a
# mirror image would change. "pretraining": table 14's multi-scale crop and mirroring, nothing else.
AUGMENT_PRESETS: dict[str, AugmentConfig] = {
    "released": AugmentConfig(rand_augment="rand-m7-n4-mstd0.5-inc1"),
    "paper": AugmentConfig(rand_augment="rand-m9-n4-mstd0.5-inc1"),
    "light": AugmentConfig(
        brightness=0.2, contrast=0.2, crop_scale=(0.6, 1.0), crop_ratio=(0.8, 1.25), hflip=0.0, erasing=0.0
    ),
    "pretraining": AugmentConfig(crop_scales=(0.66, 0.75, 0.875, 1.0), erasing=0.0),
    "none": AugmentConfig(crop_scale=None, hflip=0.0, erasing=0.0),
}
