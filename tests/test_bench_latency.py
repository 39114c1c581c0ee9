"""The sweep over sizes, and the whole of ``bench latency`` in small."""

import os

import pytest

from realmem.bench import latency, memory
from realmem.bench.places import places
from realmem.bench.registry import Options
from realmem.errors import HostError


@pytest.mark.parametrize("llc", [1 << 20, 32 << 20, 384 << 20])
def test_sizes_reach_from_the_first_cache_to_beyond_the_last(llc):
    full, quick = latency.sizes(llc, False), latency.sizes(llc, True)
    assert full == sorted(full) and quick == sorted(quick)
    assert set(quick) < set(full)
    for sweep in (full, quick):
        assert sweep[0] <= 32 << 10
        assert sweep[-1] >= max(256 << 20, 2 * llc)
        assert len(sweep) >= 4


def test_end_to_end(monkeypatch):
    monkeypatch.setattr(latency, "sizes", lambda llc, quick: [16 << 10, 64 << 10, 1 << 20])
    before = os.sched_getaffinity(0)
    results = list(latency.run(Options(quick=True, pages=("4K",))))
    where = places()
    assert len(results) == 3 * len(where.cpus) * len(where.memory)
    for result in results:
        assert (result.bench, result.unit, result.params["pages"]) == ("latency", "ns", "4K")
        assert len(result.samples) >= 5
        assert 0 < result.min <= result.median <= result.p95
    assert os.sched_getaffinity(0) == before


def test_smaller_memory_means_a_shorter_sweep(monkeypatch):
    """A host that has not got the largest size still gets the others."""
    real = memory._make
    asked = []

    def poor(node, size, pages):
        asked.append(size)
        if size > 1 << 20:
            raise HostError(12, "not so much")
        return real(node, size, pages)

    monkeypatch.setattr(memory, "_make", poor)
    monkeypatch.setattr(latency, "sizes", lambda llc, quick: [1 << 18, 1 << 20, 1 << 21, 1 << 22])
    results = list(latency.run(Options(quick=True, pages=("4K",))))
    assert asked[:3] == [1 << 22, 1 << 21, 1 << 20]
    assert {result.params["size_bytes"] for result in results} == {1 << 18, 1 << 20}


def test_samples_with_another_thread_in_them_are_taken_again(monkeypatch):
    """As often as asked; then what came out is kept."""
    calls, switches = [], iter(range(1000))
    monkeypatch.setattr(
        latency.chase, "chase", lambda start, loads: (calls.append(loads), (loads * 10, start))[1]
    )
    monkeypatch.setattr(latency, "_preemptions", lambda: 0)
    latency.sample_chase(0, 100, 100_000, 3, retries=4)
    calm = len(calls)
    monkeypatch.setattr(latency, "_preemptions", lambda: next(switches))
    samples = latency.sample_chase(0, 100, 100_000, 3, retries=4)
    assert samples == (10.0, 10.0, 10.0)
    assert len(calls) - calm == calm + 3 * 4


@pytest.mark.numa(nodes=2)
def test_every_pair_of_nodes_is_measured_on_its_own_memory(monkeypatch):
    monkeypatch.setattr(latency, "sizes", lambda llc, quick: [16 << 10, 64 << 10, 1 << 20])
    where = places()
    results = list(latency.run(Options(quick=True, pages=("4K",))))
    pairs = {(result.cpu_node, result.memory_node) for result in results}
    assert pairs == {(cpu, memory) for cpu in where.cpus for memory in where.memory}
    assert not any(result.stamps for result in results)     # move_pages said where it lies
    assert not any("another node" in result.note for result in results)
