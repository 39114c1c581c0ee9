"""Attempts that are made to fail, and what becomes of who made them."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

import realmem as rm
from realmem import GFP


@pytest.fixture
def machine() -> Iterator[rm.Machine]:
    with rm.Machine(nodes=1, memory="32M") as machine:
        yield machine
        machine.check()


def outcomes(machine: rm.Machine, n: int, order: int = 0, gfp: GFP = GFP.KERNEL) -> str:
    """One letter an attempt: a page, or a failure."""
    said = ""
    for _ in range(n):
        try:
            machine.free_pages(machine.alloc_pages(gfp, order), order)
            said += "."
        except rm.OutOfMemory:
            said += "x"
    return said


@pytest.mark.parametrize("order", [0, 3, 5, 9, 10])
def test_the_nth_attempt_fails_whatever_was_remembered(machine, order):
    assert outcomes(machine, 3, order) == "..."
    with machine.inject("page_alloc", nth=3) as point:
        assert outcomes(machine, 6, order) == "..x..."
    assert (point.attempts, point.failures) == (6, 1)
    assert outcomes(machine, 3, order) == "..."


def test_those_behind_it(machine):
    with machine.inject("page_alloc", nth=2, times=3):
        assert outcomes(machine, 8) == ".xxx...."


@given(st.floats(0.01, 1), st.integers(0, 2**63 - 1), st.none() | st.integers(1, 20))
def test_a_seed_gives_the_same_again(probability, seed, times):
    arguments = {"probability": probability, "seed": seed, "times": times}
    with (rm.Machine(memory="16M") as machine,
          machine.inject("page_alloc", **arguments) as first):
        said = outcomes(machine, 60)
    with (rm.Machine(memory="16M") as machine,
          machine.inject("page_alloc", **arguments)):
        assert outcomes(machine, 60) == said
    assert first.failures == said.count("x") <= (times or 60)


def test_probabilities_are_kept(machine):
    assert outcomes(machine, 0) == ""
    for probability in (0.02, 0.25, 0.9):
        with machine.inject("page_alloc", probability=probability, seed=1) as point:
            outcomes(machine, 4000)
        assert abs(point.failures / 4000 - probability) < 0.03
    with machine.inject("page_alloc", probability=1):
        assert outcomes(machine, 5) == "xxxxx"


def test_nofail_does_not_fail(machine):
    with machine.inject("page_alloc", probability=1) as point:
        assert outcomes(machine, 3, gfp=GFP.KERNEL | GFP.NOFAIL) == "..."
    assert point.attempts == 0


def test_a_bulk_is_one_attempt(machine):
    with machine.inject("page_alloc", nth=2) as point:
        some = machine.alloc_pages_bulk(GFP.KERNEL, 10)
        none = machine.alloc_pages_bulk(GFP.KERNEL, 10)
    assert (len(some), len(none), point.attempts) == (10, 0, 2)
    machine.free_pages_bulk(some)


def test_nested_ones(machine):
    with machine.inject("page_alloc", nth=3) as outer:
        assert outcomes(machine, 1) == "."
        with machine.inject("page_alloc", nth=1):
            assert outcomes(machine, 3) == "x.."
        assert outcomes(machine, 3) == ".x."
    assert outer.attempts == 4
    with machine.inject("page_alloc", nth=1) as once, pytest.raises(ValueError, match="already"):
        once.__enter__()


def test_threads_do_not_nest_theirs(machine):
    """Whoever entered last is in force until it leaves; then nothing is left of the others."""
    first, second, third = (machine.inject("page_alloc", nth=n) for n in (4, 1, 2))
    first.__enter__()
    assert outcomes(machine, 1) == "."
    second.__enter__()
    third.__enter__()
    second.__exit__(None, None, None)               # from between: it never was in force again
    assert outcomes(machine, 1) == "."
    first.__exit__(None, None, None)
    assert outcomes(machine, 2) == "x."
    assert (first.attempts, second.attempts, third.attempts) == (1, 0, 3)
    third.__exit__(None, None, None)
    assert outcomes(machine, 5) == "....."
    assert (first.attempts, second.attempts, third.attempts) == (1, 0, 3)


def test_one_that_goes_below_another(machine):
    first, second = (machine.inject("page_alloc", nth=n) for n in (1, 3))
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert outcomes(machine, 4) == "..x."
    first.__exit__(None, None, None)                # left already
    assert second.attempts == 4
    second.__exit__(None, None, None)
    assert outcomes(machine, 3) == "..."


def test_every_thread_counts(machine):
    """A fast path that another thread had before must not be missed."""
    ready, go = threading.Barrier(3), threading.Barrier(3)
    said: list[str] = []

    def run() -> None:
        outcomes(machine, 10)
        ready.wait()
        go.wait()
        said.append(outcomes(machine, 500))

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    ready.wait()
    with machine.inject("page_alloc", nth=400, times=200) as point:
        go.wait()
        for thread in threads:
            thread.join()
    assert (point.attempts, point.failures) == (1000, 200)
    assert sum(one.count("x") for one in said) == 200


def live_and_die(machine: rm.Machine) -> bool:
    """Spawn, map, touch, fork, break a copy, exit; whether there was memory for all of it."""
    made = []
    try:
        parent = machine.spawn()
        made.append(parent)
        at = parent.mmap(None, 1 << 16, rm.PROT_READ | rm.PROT_WRITE,
                         rm.MAP_PRIVATE | rm.MAP_ANONYMOUS)
        parent.write(at, b"x" * 9000)
        made.append(parent.fork())
        made[1].write(at, b"y" * 9000)
        return True
    except rm.OutOfMemory:
        return False
    except OSError as why:          # of a system call
        assert why.errno == errno.ENOMEM
        return False
    finally:
        machine.check()
        for process in reversed(made):
            process.exit()
        machine.check()
        machine.quicklists.trim()
        machine.drain_all_pages()


def test_every_allocation_of_a_process_in_turn():
    """Whichever attempt fails, all that was taken is given back."""
    nth = 0
    failed = True
    while failed:
        nth += 1
        with rm.Machine(nodes=1, memory="32M", window="1G") as machine:
            zone = machine.nodes[0].zones[-1]
            before = zone.free_pages
            with machine.inject("page_alloc", nth=nth) as point:
                finished = live_and_die(machine)
            failed = point.failures != 0
            assert finished or failed       # a slab may do with a smaller block
            between = zone.free_pages
            assert live_and_die(machine)
            # What the first process sets up for all stays: it is there once, or not at all.
            assert between in (before, zone.free_pages), nth
            assert live_and_die(machine)
            assert zone.free_pages >= before - 8, nth
    assert nth > 10


def test_closed_meanwhile():
    machine = rm.Machine(memory="16M")
    with machine.inject("page_alloc", nth=5) as point:
        machine.close()
    assert point.attempts == 0
    with pytest.raises(ValueError, match="closed"):
        machine.inject("page_alloc", nth=1)


@pytest.mark.parametrize(("arguments", "error"), [
    ({"point": "no such"}, ValueError),
    ({"point": "page_alloc"}, ValueError),
    ({"point": "page_alloc", "nth": 0}, ValueError),
    ({"point": "page_alloc", "nth": -1}, ValueError),
    ({"point": "page_alloc", "nth": 2**63}, ValueError),
    ({"point": "page_alloc", "nth": 1.0}, TypeError),
    ({"point": "page_alloc", "nth": True}, TypeError),
    ({"point": "page_alloc", "nth": 1, "probability": 0.5}, ValueError),
    ({"point": "page_alloc", "probability": 1.01}, ValueError),
    ({"point": "page_alloc", "probability": -0.1}, ValueError),
    ({"point": "page_alloc", "probability": float("nan")}, ValueError),
    ({"point": "page_alloc", "probability": "1"}, TypeError),
    ({"point": "page_alloc", "nth": 1, "times": 0}, ValueError),
    ({"point": "page_alloc", "nth": 1, "seed": "x"}, TypeError),
    ({"point": "page_alloc", "nth": 1, "seed": -1}, ValueError),
])
def test_bad_arguments(machine, arguments, error):
    with pytest.raises(error):
        machine.inject(**arguments)
    assert outcomes(machine, 3) == "..."
