"""realmem.bench.stats against numpy, and what a noise band promises."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from realmem.bench import stats

numbers = st.lists(st.floats(1e-3, 1e9), min_size=1, max_size=60)


@given(numbers, st.floats(0, 100))
def test_percentile_is_numpys(samples, q):
    assert stats.percentile(samples, q) == pytest.approx(float(np.percentile(samples, q)))


@given(numbers)
def test_percentiles_lie_among_the_samples(samples):
    found = [stats.percentile(samples, q) for q in (0, 5, 50, 95, 100)]
    assert found == sorted(found)
    assert (found[0], found[-1]) == (min(samples), max(samples))
    assert stats.median(samples) == found[2]


@pytest.mark.parametrize(("samples", "q"), [([], 50), ([1.0], -1), ([1.0], 100.5)])
def test_percentile_refuses(samples, q):
    with pytest.raises(ValueError, match="percentile"):
        stats.percentile(samples, q)


def test_spread():
    assert stats.spread([4.0, 2.0, 3.0]) == 1.0
    assert stats.spread([5.0]) == 0.0


@given(numbers, numbers)
def test_noise_band_holds_one(old, new):
    low, high = stats.noise_band(old, new)
    assert 0 < low <= 1 <= high


@given(numbers, numbers)
def test_noise_band_turns_round(old, new):
    low, high = stats.noise_band(old, new)
    back_low, back_high = stats.noise_band(new, old)
    assert back_low == pytest.approx(1 / high)
    assert back_high == pytest.approx(1 / low)


@given(numbers, st.floats(0.01, 100))
def test_noise_band_does_not_know_the_level(samples, factor):
    scaled = [sample * factor for sample in samples]
    assert stats.noise_band(samples, scaled) == pytest.approx(stats.noise_band(samples, samples))


def test_noise_band_covers_what_it_says():
    draw = random.Random(1)
    inside = 0
    for _ in range(200):
        old = [draw.gauss(100, 3) for _ in range(15)]
        new = [draw.gauss(100, 3) for _ in range(15)]
        low, high = stats.noise_band(old, new)
        inside += low <= stats.median(new) / stats.median(old) <= high
        assert low < 1.2 / 1 and high < 1.2       # 20 % is far outside noise of 3 %
    assert inside > 190                           # medians vary less than single samples


def test_noise_band_refuses_what_has_no_ratio():
    with pytest.raises(ValueError, match="positive"):
        stats.noise_band([1.0, 0.0], [1.0])
