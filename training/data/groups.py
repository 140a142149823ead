# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Parts of a set that share no group: no person, no sequence."""

from collections import Counter
from collections.abc import Sequence

import numpy as np


def part_groups(groups: Sequence[str], num_parts: int) -> dict[str, int]:
    """Group -> part, of parts with about as many clips each: large groups first, each into the smallest part.

    Args:
        groups: The group of each clip.
        num_parts: At least 2.

    Raises:
        ValueError: fewer groups than parts.
    """
    sizes = Counter(groups)
    if not 2 <= num_parts <= len(sizes):
        raise ValueError(f"number of parts must be between 2 and the {len(sizes)} groups, got {num_parts}")
    names = sorted(sizes)
    order = [names[index] for index in np.random.default_rng(0).permutation(len(names))]
    parts, filled = {}, [0] * num_parts
    for group in sorted(order, key=lambda group: -sizes[group]):
        parts[group] = filled.index(min(filled))
        filled[parts[group]] += sizes[group]
    return parts
