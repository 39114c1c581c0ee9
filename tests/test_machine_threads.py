"""Machines and threads: each may begin, and end, before the other."""

from __future__ import annotations

import random
import threading

import pytest
from lifetime import SMALL, footprint, wait_for, with_zeros

import realmem as rm
from realmem import GFP


def test_many_threads_begin_and_end():
    """A thread's lists go back to the zones when it ends."""
    with rm.Machine(2, "8M", **SMALL) as machine:
        with_zeros(machine)
        machine.drain_all_pages()
        free = [node.free_pages for node in machine.nodes]
        errors = []

        def work(seed):
            rng = random.Random(seed)
            try:
                kept = []
                for _ in range(100):
                    order = rng.choice((0, 1, 2, 3))
                    kept.append((machine.alloc_pages(GFP.ATOMIC, order), order))
                    if len(kept) > 8:
                        machine.free_pages(*kept.pop(0))
                for one in kept:
                    machine.free_pages(*one)
            except BaseException as error:
                errors.append(error)

        for round_ in range(8):
            threads = [threading.Thread(target=work, args=(round_ * 100 + i,)) for i in range(12)]
            for thread in threads:
                thread.start()
            machine.check()
            for thread in threads:
                thread.join()
        assert errors == []
        # Nothing is drained here: ended threads left nothing behind.
        wait_for(lambda: [node.free_pages for node in machine.nodes] == free)
        machine.check()
        assert machine.vmstat["pgfree"] >= 8 * 12 * 100


def test_pages_are_freed_by_another_thread():
    with rm.Machine(1, "8M", **SMALL) as machine:
        boot = machine.nodes[0].zones[0].free_area
        pages = [machine.alloc_pages(GFP.KERNEL, order) for order in (0, 1, 3, 5, 9)]

        def free():
            for page in pages:
                machine.free_pages(page, page.order)

        thread = threading.Thread(target=free)
        thread.start()
        thread.join()
        machine.drain_all_pages()
        machine.check()
        assert machine.nodes[0].zones[0].free_area == boot


def test_threads_that_outlive_machines():
    """A thread's per-CPU lists of a closed machine serve the next one, larger or smaller."""
    go, done = threading.Barrier(3), threading.Barrier(3)
    current = []
    errors = []

    def work():
        try:
            for _ in range(12):
                go.wait(60)
                machine = current[-1]
                for order in (0, 1, 2, 3, 5):
                    machine.free_pages(machine.alloc_pages(GFP.KERNEL, order), order)
                machine.alloc_pages(GFP.KERNEL, 0)      # left to the machine's end
                done.wait(60)
        except BaseException as error:
            errors.append(error)
            go.abort()
            done.abort()

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for turn in range(12):
        with rm.Machine((1, 6, 2, 4)[turn % 4], "4M", **SMALL) as machine:
            current.append(machine)
            go.wait(60)
            done.wait(60)
            machine.check()
            assert machine.vmstat["numa_hit"] == 12
    for thread in threads:
        thread.join()
    assert errors == []


def test_threads_end_after_their_machine():
    before = footprint()
    leave = threading.Event()
    ready = threading.Barrier(9)
    machine = rm.Machine(2, "4M", **SMALL)
    alloc = machine.alloc_pages

    def work(alloc):
        alloc(GFP.KERNEL, 0)
        del alloc
        ready.wait(60)
        leave.wait(60)

    threads = [threading.Thread(target=work, args=(alloc,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    ready.wait(60)
    machine.close()
    other = rm.Machine(2, "4M", **SMALL)        # may lie where the first one lay
    other.alloc_pages(GFP.KERNEL, 0)
    leave.set()
    for thread in threads:
        thread.join()
    other.check()
    other.close()
    del machine, other, alloc
    wait_for(lambda: footprint() == before)


@pytest.mark.crash
def test_closing_while_others_are_inside(python):
    """Calls of other threads end as calls on a closed machine do, not in a crash."""
    child = python("""
import random, threading, sys
import realmem as rm
from realmem import GFP
sys.setswitchinterval(1e-5)
outcomes = set()
def work(machine, how, ready):
    ready.wait()
    try:
        while True:
            if how == 0:
                machine.check()
            elif how == 1:
                machine.free_pages_bulk(machine.alloc_pages_bulk(GFP.KERNEL, 500))
            elif how == 2:
                machine.free_pages(machine.alloc_pages(GFP.KERNEL | GFP.ZERO, 9), 9)
            else:
                machine.drain_all_pages()
    except ValueError as error:
        outcomes.add(str(error))
    except BaseException as error:
        outcomes.add(repr(error))
for turn in range(25):
    machine = rm.Machine(1, "12M")
    ready = threading.Barrier(5)
    threads = [threading.Thread(target=work, args=(machine, how, ready)) for how in range(4)]
    for thread in threads:
        thread.start()
    ready.wait()
    threading.Event().wait(random.Random(turn).random() * 0.01)
    if turn % 2:
        machine.close()
    else:
        with machine:
            pass
    for thread in threads:
        thread.join()
print(outcomes)
""")
    assert child.returncode == 0, child.stderr
    assert child.stdout == "{'this machine is closed'}\n"


@pytest.mark.crash
def test_two_threads_close(python):
    """The second one must not unmap what others are still inside of."""
    child = python("""
import threading
import realmem as rm
for turn in range(8):
    machine = rm.Machine(1, "48M")
    both, inside, found = threading.Barrier(2), threading.Event(), []
    def finish():                   # both have asked everything that close() asks
        both.wait()
        type(machine)._finish(machine)
    machine._finish = finish
    def use():
        try:
            while True:
                inside.set()
                pages = machine.alloc_pages_bulk(rm.GFP_KERNEL | rm.GFP.ZERO, 10000)
                machine.free_pages_bulk(pages)
        except BaseException as error:
            found.append(repr(error))
    threads = [threading.Thread(target=f) for f in (use, use, machine.close, machine.close)]
    for thread in threads:
        thread.start()
        inside.wait()
    for thread in threads:
        thread.join()
    assert found == ["ValueError('this machine is closed')"] * 2, found
    machine.close()
""")
    assert child.returncode == 0, child.stderr
    assert child.stderr == ""


@pytest.mark.crash
def test_two_threads_spawn_first(python):
    """They find one table of processes: check() and close() know of all of them."""
    child = python("""
import threading
import realmem as rm
machine = rm.Machine(1, "16M", window="1G")
ready, made = threading.Barrier(4), []
def spawn():
    ready.wait()
    made.append(machine.spawn())
threads = [threading.Thread(target=spawn) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert sorted(machine.processes) == sorted(p.pid for p in made) == [1, 2, 3, 4], machine.processes
machine.check()
machine.close()
for process in made:
    try:
        process.vmas
    except ValueError:
        continue
    raise AssertionError(process)
""")
    assert child.returncode == 0, child.stderr


def test_the_lists_of_very_many_threads_are_counted():
    """The books hold however many threads there are; what they keep is added up by CPU."""
    before = threading.stack_size(256 << 10)
    ready, leave = threading.Semaphore(0), threading.Event()
    with rm.Machine(nodes=1, memory="64M") as machine:
        zone = machine.nodes[0].zones[-1]

        def work() -> None:
            machine.free_page(machine.alloc_pages(rm.GFP_KERNEL, 0))
            ready.release()
            leave.wait()

        threads = [threading.Thread(target=work) for _ in range(1100)]
        try:
            for thread in threads:
                thread.start()
            for _ in threads:
                ready.acquire()
            lists = machine._allocator.pcp_stat(zone.index)
            assert sum(one["count"] for one in lists) >= len(threads)
            assert zone.free_pages + sum(one["count"] for one in lists) == zone.managed_pages
            assert len({one["cpu"] for one in lists}) == len(lists)
            machine.check()
        finally:
            leave.set()
            for thread in threads:
                thread.join()
            threading.stack_size(before)
        machine.check()


@pytest.mark.parametrize("debug", [1, 2])
def test_what_is_checked_after_each_call_stands_other_threads(debug):
    with rm.Machine(nodes=1, memory="16M", debug=debug) as machine:
        wrong = []

        def use(order):
            try:
                for _ in range(300):
                    pages = [machine.alloc_pages(rm.GFP.KERNEL, order) for _ in range(4)]
                    for page in pages:
                        machine.free_pages(page, order)
            except BaseException as why:
                wrong.append(why)

        threads = [threading.Thread(target=use, args=(order,)) for order in (0, 0, 3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
