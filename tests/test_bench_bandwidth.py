"""The streaming kernels compute what they say, on every element, by however many threads."""

import os
import threading
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from realmem._bench import stream
from realmem.bench import bandwidth
from realmem.bench.places import places
from realmem.bench.registry import Options


def arrays(elements):
    """Three arrays that lie one after the other, with a guard behind each end."""
    rng = np.random.default_rng(elements)
    whole = rng.random(3 * elements + 2)
    return whole, whole[1:-1].reshape(3, elements)


def expected(kernel, a, b, c):
    """Do in numpy what a kernel does, in place."""
    if kernel == "write":
        a[:] = 1.0
    elif kernel == "copy":
        c[:] = a
    elif kernel == "scale":
        b[:] = 3.0 * c
    elif kernel == "add":
        c[:] = a + b
    elif kernel == "triad":
        a[:] = b + 3.0 * c


@given(kernel=st.sampled_from(bandwidth.KERNELS), elements=st.integers(3, 70),
       threads=st.integers(1, 3))
def test_kernels_against_numpy(kernel, elements, threads):
    whole, (a, _b, _c) = arrays(elements)
    model = whole.copy()
    expected(kernel, *model[1:-1].reshape(3, elements))
    cpu = min(os.sched_getaffinity(0))
    rates = bandwidth.run_gang([cpu] * threads, a.ctypes.data, elements, 2, (kernel,))
    assert np.array_equal(whole, model)
    assert list(rates) == [kernel]
    assert len(rates[kernel]) == 1 and rates[kernel][0] > 0


def test_kernels_run_in_order_in_every_pass():
    elements, passes = 50, 5
    _whole, (a, b, c) = arrays(elements)
    a[:], b[:], c[:] = 1.0, 2.0, 0.0            # as STREAM begins and checks
    kernels = ("copy", "scale", "add", "triad")
    bandwidth.run_gang(sorted(os.sched_getaffinity(0)), a.ctypes.data, elements, passes, kernels)
    x, y, z = 1.0, 2.0, 0.0
    for _ in range(passes):
        z = x
        y = 3.0 * z
        z = x + y
        x = y + 3.0 * z
    assert set(a) == {x} and set(b) == {y} and set(c) == {z}


@given(threads=st.integers(1, 3), retries=st.integers(0, 3), passes=st.integers(1, 4))
def test_retries_change_no_result(threads, retries, passes):
    """However often a kernel is run again, the arrays are those of one run."""
    elements = 40
    whole, (a, _b, _c) = arrays(elements)
    model = whole.copy()
    kernels = ("copy", "scale", "add", "triad", "write")
    for _ in range(passes + 1):
        for kernel in kernels:
            expected(kernel, *model[1:-1].reshape(3, elements))
    cpu = min(os.sched_getaffinity(0))          # more threads than CPUs: they preempt each other
    rates = bandwidth.run_gang(
        [cpu] * threads, a.ctypes.data, elements, passes + 1, kernels, retries
    )
    assert np.array_equal(whole, model)
    assert [len(samples) for samples in rates.values()] == [passes] * 5
    assert all(0 < rate < 1e6 for samples in rates.values() for rate in samples)


def test_a_member_that_cannot_start_stops_the_gang():
    _whole, (a, _b, _c) = arrays(30)
    cpu = min(os.sched_getaffinity(0))
    before = os.sched_getaffinity(0)
    with pytest.raises(OSError):
        bandwidth.run_gang([cpu, 100000], a.ctypes.data, 30, 1000, ("copy",))
    assert os.sched_getaffinity(0) == before
    assert threading.active_count() == 1


@pytest.mark.parametrize(
    ("threads", "kernels", "passes"),
    [(0, [0], 1), (1, [], 1), (1, [0], 0), (1, [6], 1), (1, [-1], 1)],
)
def test_gang_refuses(threads, kernels, passes):
    with pytest.raises(ValueError):
        stream.Gang(threads, kernels, passes)


def test_end_to_end(monkeypatch):
    small = replace(places(), llc_bytes=1 << 20)
    monkeypatch.setattr(bandwidth, "places", lambda: small)
    monkeypatch.setattr(bandwidth, "LEAST_LLC_BYTES", 1 << 20)
    before = os.sched_getaffinity(0)
    said = []
    options = Options(quick=True, pages=("4K",), progress=said.append)
    results = list(bandwidth.run(options))
    most = max(map(len, small.cpus.values()))
    threads = {1, most}
    pairs = len(small.cpus) * len(small.memory)
    assert len(results) == pairs * len(threads) * len(bandwidth.KERNELS)
    assert {result.params["threads"] for result in results} == threads
    assert all(result.unit == "GB/s" and result.higher_is_better for result in results)
    assert all(len(result.samples) >= 5 and result.min > 0 for result in results)
    assert said
    assert os.sched_getaffinity(0) == before


def test_threads_are_limited(monkeypatch):
    monkeypatch.setattr(bandwidth, "places", lambda: replace(places(), llc_bytes=1 << 20))
    monkeypatch.setattr(bandwidth, "LEAST_LLC_BYTES", 1 << 20)
    results = bandwidth.run(Options(quick=True, pages=("4K",), threads=1))
    assert {result.params["threads"] for result in results} == {1}
