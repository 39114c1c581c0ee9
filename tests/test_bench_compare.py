"""Comparing runs: figures are matched by what they measure, and noise is not a change."""

import pytest

from realmem.bench import compare
from realmem.bench.results import Result, Run

NOISE = (0.98, 1.0, 1.02, 0.99, 1.01, 1.0, 1.0)
HOST = {"cpu_model": "x", "kernel": "6", "load_average": [0.0], "cpus_allowed": [0, 1]}


def result(level, metric="load", higher=False, noise=NOISE, **params):
    samples = tuple(level * part for part in noise)
    return Result("latency", metric, "ns", samples, 0, 0, params, higher_is_better=higher)


def one(old, new):
    (change,) = compare(Run(HOST, results=(old,)), Run(HOST, results=(new,))).changes
    return change


@pytest.mark.parametrize(
    ("factor", "higher", "verdict"),
    [
        (1.0, False, "same"),
        (1.01, False, "same"),
        (1.5, False, "worse"),
        (0.5, False, "better"),
        (1.5, True, "better"),
        (0.5, True, "worse"),
    ],
)
def test_verdicts(factor, higher, verdict):
    change = one(result(100, higher=higher), result(100 * factor, higher=higher))
    assert change.ratio == pytest.approx(factor)
    assert change.band[0] <= 1 <= change.band[1]
    assert change.verdict == verdict


def test_wide_noise_hides_what_narrow_noise_shows():
    wide = (0.5, 0.7, 1.0, 1.4, 1.8)
    assert one(result(100), result(120)).verdict == "worse"
    assert one(result(100, noise=wide), result(120, noise=wide)).verdict == "same"


def test_a_single_sample_has_no_verdict():
    assert one(result(100, noise=(1.0,)), result(900, noise=(1.0,))).verdict == "?"


def test_matching_is_by_what_was_measured():
    old = Run(HOST, results=(result(1, size_bytes=1), result(2, size_bytes=2)))
    new = Run(HOST, results=(result(2, size_bytes=2), result(3, size_bytes=3)))
    found = compare(old, new)
    assert [change.new.params["size_bytes"] for change in found.changes] == [2]
    assert [r.params["size_bytes"] for r in found.only_old] == [1]
    assert [r.params["size_bytes"] for r in found.only_new] == [3]
    assert found.warnings == ()


def test_benches_that_did_not_run_again_are_not_missed():
    other = Result("alloc", "alloc+free", "ns", (1.0,))
    found = compare(Run(HOST, results=(result(1), other)), Run(HOST, results=(result(1),)))
    assert (len(found.changes), found.only_old) == (1, ())


def test_differences_of_hosts_are_said():
    other = {**HOST, "cpu_model": "y", "load_average": [5.0]}
    stamped = Result("b", "m", "ns", (1.0,), stamps=("unverified",))
    found = compare(Run(HOST, results=(result(1),)), Run(other, results=(stamped,)))
    assert any("cpu_model differs: x then, y now" in text for text in found.warnings)
    assert any("busy now: load average 5.0" in text for text in found.warnings)
    assert any("stamps differ: none then, unverified now" in text for text in found.warnings)


def test_figures_without_a_ratio_are_left_out():
    below = Result("b", "m", "ns", (-1.0, 2.0))
    assert compare(Run(HOST, results=(below,)), Run(HOST, results=(below,))).changes == ()
