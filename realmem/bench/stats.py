"""
Order statistics of a few samples, without numpy (importing it takes longer than most of this).

Timings are skewed: one interrupt makes one sample long.  So everything here is a percentile;
nothing is a mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def percentile(samples: Sequence[float], q: float) -> float:
    """
    Interpolate linearly between order statistics, as ``numpy.percentile`` does by default.

    :param samples: at least one number, in any order.
    :param q: percent, 0..100.
    :return: the value below which ``q`` percent of the samples lie.
    :raises ValueError: no samples, or ``q`` out of range.
    """
    if not samples:
        raise ValueError("percentile of no samples")
    if not 0 <= q <= 100:
        raise ValueError(f"percentile out of 0..100: {q}")
    ordered = sorted(samples)
    rank = (len(ordered) - 1) * q / 100
    below = math.floor(rank)
    above = math.ceil(rank)
    low, high = ordered[below], ordered[above]
    if low == high:
        return low                              # also keeps an infinity from turning into nan
    # From the nearer end, so that rounding cannot carry the value past either.
    part = rank - below
    return low + (high - low) * part if part < 0.5 else high - (high - low) * (1 - part)


def median(samples: Sequence[float]) -> float:
    """Give the 50th percentile."""
    return percentile(samples, 50)


def spread(samples: Sequence[float]) -> float:
    """Give ``max / min - 1``: how far apart repeated measurements of one thing came out."""
    low, high = min(samples), max(samples)
    if low <= 0:
        return math.inf if high > low else 0.0
    return high / low - 1


def noise_band(
    old: Sequence[float], new: Sequence[float], coverage: float = 95
) -> tuple[float, float]:
    """
    Tell which ratios new/old would be seen if only noise lay between two sets of samples.

    Each sample is divided by its own set's median; the band holds the middle ``coverage``
    percent of the quotients of every new one by every old one.  A ratio of medians outside it
    is larger than what one sample differs from another within the runs themselves.

    :param old: samples of the earlier run, positive.
    :param new: samples of the later run, positive.
    :param coverage: percent of the quotients inside the band.
    :return: lower and upper end; the lower is at most 1, the upper at least 1.
    :raises ValueError: no samples, or some that are not positive.
    """
    if min(*old, *new, math.inf) <= 0:
        raise ValueError("a noise band needs positive samples")
    # In logarithms, so that the band of old over new is the same one turned round.
    old_mid, new_mid = math.log(median(old)), math.log(median(new))
    quotients = [(math.log(y) - new_mid) - (math.log(x) - old_mid) for x in old for y in new]
    tail = (100 - coverage) / 2
    low, high = percentile(quotients, tail), percentile(quotients, 100 - tail)
    return min(1.0, math.exp(low)), max(1.0, math.exp(high))
