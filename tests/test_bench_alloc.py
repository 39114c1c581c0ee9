"""The allocation bench: its loops, its rows, its results."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest

from realmem import GFP_KERNEL, Machine
from realmem._bench import alloc as compiled
from realmem._bench.llfree import LLFreeAllocator
from realmem.bench import alloc, alloc_python, registry
from realmem.bench.alloc_rows import Row, Rows, llfree_path
from realmem.bench.registry import Options
from realmem.bench.results import Result, Run


@pytest.fixture
def machine():
    with Machine(nodes=1, memory="64M") as made:
        yield made


def cpus(count):
    return sorted(os.sched_getaffinity(0))[:count]


def drained_free_pages(machine):
    machine.drain_all_pages()
    return machine.nodes[0].free_pages


@pytest.mark.parametrize("pattern", ["pair", "lifo", "random", "bulk", "touch"])
@pytest.mark.parametrize("order", [0, 3, 5, 10])
def test_each_pattern_gives_samples_and_every_page_back(machine, pattern, order):
    if pattern == "bulk" and order:
        pytest.skip("bulk is of order 0")
    before = drained_free_pages(machine)
    allocated = machine.vmstat["pgalloc_dma32"]
    rows = Rows(cpus(1), rounds=3)
    held = 1 if pattern == "pair" else 4
    shuffle = (2, 0, 3, 1) if pattern == "random" else ()
    row = Row(rows.realmem(machine, 0), pattern, order, held=held, turns=5, shuffle=shuffle)
    rows.add(row)
    rows.measure()
    assert len(row.get_ns) == 3 and min(row.get_ns) > 0
    assert len(row.put_ns) == (0 if pattern == "pair" else 3)
    assert len(row.pair_ns) == 3 and min(row.pair_ns) >= min(row.get_ns)
    assert drained_free_pages(machine) == before
    # Rounds, turns and blocks: the loops really ran.
    assert machine.vmstat["pgalloc_dma32"] - allocated == (3 * 5 * held) << order
    machine.check()


def test_threads_run_at_once_and_rows_in_turns(machine):
    if len(cpus(2)) < 2:
        pytest.skip("one CPU")
    rows = Rows(cpus(2), rounds=4)
    allocator = rows.realmem(machine, 0)
    for threads in (1, 2):
        rows.add(Row(allocator, "pair", 0, threads=threads, turns=50))
    before = machine.vmstat["pgalloc_dma32"]
    rows.measure()
    assert all(len(row.get_ns) == 4 for row in rows.rows)
    assert machine.vmstat["pgalloc_dma32"] - before == 4 * 50 * (1 + 2)
    machine.check()


def test_an_allocator_that_runs_out_raises_and_keeps_nothing(machine):
    before = drained_free_pages(machine)
    rows = Rows(cpus(1), rounds=1)
    rows.add(Row(rows.realmem(machine, 0), "lifo", 10, held=100, turns=1))
    with pytest.raises(MemoryError):
        rows.measure()
    assert drained_free_pages(machine) == before


def test_a_cpu_that_is_not_there_raises(machine):
    rows = Rows([1 << 14], rounds=1)
    rows.add(Row(rows.realmem(machine, 0), "pair", 0))
    with pytest.raises(OSError):
        rows.measure()


def test_stop_ends_a_session_from_outside(machine):
    session = compiled.Session(1, 1 << 20)
    session.add(Rows(cpus(1), 1).realmem(machine, 0), "pair", 0, 1, 1, 100)
    session.prepare()
    worker = threading.Thread(target=session.work, args=(0,))
    worker.start()
    session.stop()
    worker.join(30)
    assert not worker.is_alive()


def test_ageing_splits_blocks_and_is_undone(machine):
    before = drained_free_pages(machine)
    whole = machine.nodes[0].zone("DMA32").free_area
    rows = Rows(cpus(1), rounds=1)
    allocator = rows.realmem(machine, 0)
    with rows.aged(allocator, before // 2, seed=1):
        held = before - machine.nodes[0].free_pages
        assert before // 2 * 0.45 < held < before // 2 * 0.55
        assert machine.nodes[0].zone("DMA32").free_area[0] > whole[0] + before // 16
        machine.check()
    assert drained_free_pages(machine) == before
    assert machine.nodes[0].zone("DMA32").free_area == whole
    with pytest.raises(MemoryError), rows.aged(allocator, before * 2, seed=1):
        pass
    assert drained_free_pages(machine) == before


@pytest.mark.parametrize(
    "bad",
    [
        {"order": 11},
        {"threads": 2},
        {"held": 0},
        {"turns": 0},
        {"pattern": "random", "held": 3, "shuffle": (0, 1, 1)},
        {"pattern": "bulk", "order": 1},
    ],
)
def test_impossible_rows_are_refused(machine, bad):
    rows = Rows(cpus(1), rounds=1)
    fields = {"pattern": "pair", "order": 0, **bad}
    with pytest.raises(ValueError):
        rows.add(Row(rows.realmem(machine, 0), **fields))
    with pytest.raises(KeyError):
        rows.add(Row(rows.realmem(machine, 0), "zigzag", 0))


def test_a_closed_machine_is_refused():
    with Machine(nodes=1, memory="32M") as machine:
        rows = Rows(cpus(1), rounds=1)
        rows.add(Row(rows.realmem(machine, 0), "pair", 0))
    with pytest.raises(ValueError):
        rows.measure()


def test_python_loops_free_what_they_take(machine):
    before = drained_free_pages(machine)
    assert alloc_python.python_pair_ns(machine, 10) > 0
    assert alloc_python.python_bulk_ns(machine, 8) > 0
    assert drained_free_pages(machine) == before
    page = machine.alloc_pages(GFP_KERNEL, 0)
    machine.free_pages(page, 0)


def test_every_size_is_given_back():
    """Those that kmalloc has not are measured with the other two alone."""
    with Machine(memory="256M") as machine:
        before = drained_free_pages(machine)
        for size in alloc_python.SIZES:
            for alloc_, free in ((machine.kmalloc, machine.kfree),
                                 (machine.vmalloc, machine.vfree),
                                 (machine.kvmalloc, machine.kvfree)):
                if size > alloc_python.KMALLOC_MAX_SIZE and alloc_ == machine.kmalloc:
                    with pytest.raises(ValueError):
                        alloc_(size)
                    continue
                assert alloc_python.python_size_ns(alloc_, free, size) > 0
        for cache in machine.kmem_caches.values():
            cache.shrink()
        machine.quicklists.trim()
        machine.check()
        # The kernel's page tables stay, for the next one.
        assert before - drained_free_pages(machine) <= 64


def test_the_bench_yields_what_its_table_needs():
    results = list(registry.get("alloc").run(Options(quick=True)))
    assert all(isinstance(result, Result) and result.unit == "ns" for result in results)
    keys = [result.key for result in results]
    assert len(keys) == len(set(keys))
    by_node = [r for r in results if r.metric == "alloc_pages_node"]
    assert {(r.params["order"], r.params["first_touch"]) for r in by_node} == {
        (order, touch) for order in (0, 3, 9) for touch in (False, True)
    }
    pairs = [r for r in results if r.metric == "alloc+free" and r.params["threads"] == 1]
    assert {r.params["order"] for r in pairs} == set(range(11))
    assert {r.metric for r in results} >= {"alloc_pages_bulk", "get_free_pages+free_pages"}
    by_size = [(r.metric, r.params["size_bytes"]) for r in results if "size_bytes" in r.params]
    assert sorted(by_size) == sorted(
        (metric, size) for size in alloc_python.QUICK_SIZES
        for metric in ("kmalloc+kfree", "vmalloc+vfree", "kvmalloc+kvfree")
    )
    run = Run(host={}, results=tuple(results))
    assert Run.from_json(json.loads(json.dumps(run.to_json()))) == run


def test_llfree_absent_is_said_not_raised(tmp_path: Path):
    for folder in (None, tmp_path):
        found = list(alloc.peers(Options(quick=True, peers_dir=folder)))
        assert [(r.peer, r.present) for r in found] == [("llfree", False)]


def test_llfree_of_another_version_is_refused(tmp_path: Path):
    (tmp_path / "libllfree.so").write_bytes(b"no library")
    assert llfree_path(tmp_path) == tmp_path / "libllfree.so"
    with pytest.raises(OSError):
        LLFreeAllocator(tmp_path / "libllfree.so", 1 << 14, 1)
    with pytest.raises(ValueError, match="another version"):
        LLFreeAllocator("libc.so.6", 1 << 14, 1)


@pytest.mark.skipif(
    llfree_path(Path(os.environ.get("REALMEM_PEERS", "/nonexistent"))) is None,
    reason="no libllfree.so in REALMEM_PEERS",
)
def test_llfree_beside_ours():
    options = Options(quick=True, peers_dir=Path(os.environ["REALMEM_PEERS"]))
    found = list(alloc.peers(options))
    assert all(result.present and len(result.ours) == len(result.theirs) for result in found)
