"""The objects bench: its rows, its peers, and that its loops leave nothing behind."""

from __future__ import annotations

import threading

import numpy as np
import pytest

import realmem as rm
from realmem._bench import constructed
from realmem._bench import objects as compiled
from realmem.bench import objects
from realmem.bench.registry import Options


@pytest.fixture(scope="module")
def machine():
    with rm.Machine(nodes=1, memory="64M") as made:
        yield made
        made.check()


def run(session, threads):
    workers = [threading.Thread(target=session.work, args=(index,)) for index in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


@pytest.mark.parametrize("pattern", compiled.PATTERNS)
@pytest.mark.parametrize("threads", [1, 2])
def test_loops_give_everything_back(machine, pattern, threads):
    if pattern == "passed" and threads == 1:
        pytest.skip("passing takes two threads")
    cache = machine.kmem_cache_create(f"loops-{pattern}-{threads}", 64, flags=rm.SLAB.NO_MERGE)
    session = compiled.Session(2, rounds=3)
    held = 1 if pattern in ("same", "passed") else 100
    for allocator in (compiled.of_cache(cache), compiled.of_kmalloc(cache, 64)):
        session.add(allocator, pattern, threads, held, 5, list(range(held)))
    run(session, 2)
    assert all(sample > 0 for row in (0, 1) for sample in session.samples(row))
    machine.check()
    cache.shrink()
    assert cache.num_slabs == 0
    cache.destroy()


def test_bad_rows_are_refused(machine):
    cache = machine.kmem_caches["kmalloc-64"]
    session = compiled.Session(2, rounds=1)
    allocator = compiled.of_cache(cache)
    for wrong in (("same", 3, 1, 1), ("same", 1, 0, 1), ("same", 1, 1, 0), ("passed", 1, 1, 1),
                  ("random", 1, 2, 1), ("same", 1, 1 << 20, 1)):
        with pytest.raises(ValueError):
            session.add(allocator, *wrong)
    with pytest.raises(KeyError):
        session.add(allocator, "else", 1, 1, 1)
    with pytest.raises(ValueError):
        compiled.of_malloc("none", 0, 0, 8)
    with pytest.raises(IndexError):
        session.samples(0)


@pytest.mark.parametrize("held", [1, 300])
def test_constructed_objects_stay_so(machine, held):
    made = machine.kmem_cache_create("made", constructed.SIZE, ctor=constructed.CONSTRUCTOR)
    plain = machine.kmem_cache_create("plain", constructed.SIZE, flags=rm.SLAB.NO_MERGE)
    fresh = made.alloc()
    state = bytes(machine.view(fresh, constructed.SIZE))
    assert any(state)
    made.free(fresh)
    once, each = constructed.measure(made, plain, held, 3, 5)
    assert len(once) == len(each) == 5
    assert min(once) > 0 < min(each)
    for addr in made.alloc_bulk(held).tolist():
        # Alike but for the pointers to themselves.
        words = np.frombuffer(machine.view(addr, constructed.SIZE), dtype=np.uint64)
        wanted = np.frombuffer(state, dtype=np.uint64)
        inside = (wanted >= fresh) & (wanted < fresh + constructed.SIZE)
        assert (np.where(inside, words - np.uint64(addr), words)
                == np.where(inside, wanted - np.uint64(fresh), wanted)).all()
        del words
        made.free(addr)
    for wrong in ((plain, made, 1, 1, 1), (made, plain, 0, 1, 1), (made, plain, 1, 0, 1),
                  (made, plain, 1, 1, 0), (made, made, 1, 1, 1)):
        with pytest.raises(ValueError):
            constructed.measure(*wrong)
    for cache in (made, plain):
        cache.shrink()
        cache.destroy()


def test_a_quick_run():
    results = list(objects.run(Options(quick=True)))
    metrics = {result.metric for result in results}
    assert {"kmem_cache", "kmalloc", "cache.alloc", "constructed once"} <= metrics
    sizes = {result.params["size"] for result in results if result.metric == "kmem_cache"}
    assert sizes == set(objects.SIZES)


def test_peers_that_are_missing_say_so(monkeypatch):
    monkeypatch.setattr(objects, "load", lambda names, prefix: None)
    results = list(objects.peers(Options(quick=True)))
    assert {result.peer for result in results} == {"tcmalloc", "mimalloc", "jemalloc"}
    assert not any(result.ours for result in results)


def test_a_malloc_as_peer(monkeypatch):
    monkeypatch.setattr(
        objects, "load",
        lambda names, prefix: libc_malloc() if prefix == "mi_" else None)
    results = [result for result in objects.peers(Options(quick=True)) if result.ours]
    assert results and {result.peer for result in results} == {"mimalloc"}
    assert all(len(result.ours) == len(result.theirs) for result in results)


def libc_malloc():
    import ctypes

    libc = ctypes.CDLL(None)
    return tuple(ctypes.cast(getattr(libc, name), ctypes.c_void_p).value
                 for name in ("malloc", "free"))


def test_stop_ends_a_session_from_outside():
    """An interrupted bench leaves no thread in loops over memory that goes away."""
    with rm.Machine(memory="16M") as machine:
        session = compiled.Session(2, rounds=1 << 20)
        cache = machine.kmem_cache_create("stopped", 64)
        for pattern, threads in (("same", 2), ("passed", 2)):
            session.add(compiled.of_cache(cache), pattern, threads, 1, 5, [0])
        workers = [threading.Thread(target=session.work, args=(i,)) for i in range(2)]
        for worker in workers:
            worker.start()
        session.stop()
        for worker in workers:
            worker.join(30)
            assert not worker.is_alive()
