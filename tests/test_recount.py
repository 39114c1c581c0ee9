"""Machine(debug=2): what a process's call leaves wrong is found by that call."""

from __future__ import annotations

import ctypes
import threading
from contextlib import suppress

import pytest

import realmem as rm
from realmem import MAP_ANONYMOUS, MAP_PRIVATE, PAGE_SIZE, PROT_READ, PROT_WRITE
from realmem.recount import calls

RW, ANON = PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS
P = PAGE_SIZE
SMALL = {"nodes": 1, "memory": "16M", "window": "1G", "zones": {"DMA": "0", "DMA32": "0"}}

# Arguments of each call, given the address of four pages; what is refused counts as well.
ARGUMENTS = {
    "mmap": lambda at: (None, P, RW, ANON),
    "munmap": lambda at: (at + 3 * P, P),
    "mremap": lambda at: (at, P, P),
    "mprotect": lambda at: (at + 3 * P, P, PROT_READ),
    "mseal": lambda at: (at, P, 1),
    "brk": lambda at: (0,),
    "sbrk": lambda at: (P,),
    "madvise": lambda at: (at + 3 * P, P, rm.MADV_DONTNEED),
    "process_madvise": lambda at: ([(at + 3 * P, P)], rm.MADV_COLD),
    "mincore": lambda at: (at, P),
    "msync": lambda at: (at, P, 0),
    "mlock": lambda at: (at, P),
    "mlock2": lambda at: (at, P),
    "munlock": lambda at: (at, P),
    "mlockall": lambda at: (1,),
    "munlockall": lambda at: (),
    "prctl": lambda at: (rm.PR_GET_THP_DISABLE,),
    "fork": lambda at: (),
    "exit": lambda at: (),
    "wait": lambda at: (),
    "read": lambda at: (at, 1),
    "write": lambda at: (at, b"x"),
    "touch": lambda at: (at, P),
    "fill": lambda at: (at, P, 1),
    "access": lambda at: ([at],),
}


@pytest.fixture(scope="module")
def machine():
    with rm.Machine(**SMALL, debug=2) as machine:
        yield machine


def test_every_call_is_known():
    assert set(calls()) == set(ARGUMENTS)


@pytest.mark.parametrize("name", ARGUMENTS)
def test_what_is_wrong_after_a_call_is_found_by_it(machine, name):
    sound = machine.spawn()
    broken = machine.spawn()
    at = sound.mmap(None, 4 * P, RW, ANON)
    elsewhere = broken.mmap(None, P, RW, ANON)
    broken.write(elsewhere, b"x")
    entry = ctypes.c_uint64.from_address(machine.va(broken.walk(elsewhere)[-1].address))
    before, entry.value = entry.value, 0
    try:
        with pytest.raises(rm.InvariantError, match=f"pid {broken.pid}: "):
            getattr(sound, name)(*ARGUMENTS[name](at))
    finally:
        entry.value = before
    for process in [*sound.children, sound, broken]:
        if process.pid in machine.processes:
            process.exit()
    machine.check()


def test_spawning_counts_as_well(machine):
    broken = machine.spawn()
    at = broken.mmap(None, P, RW, ANON)
    broken.write(at, b"x")
    entry = ctypes.c_uint64.from_address(machine.va(broken.walk(at)[-1].address))
    before, entry.value = entry.value, 0
    try:
        with pytest.raises(rm.InvariantError, match=f"pid {broken.pid}: "):
            machine.spawn()
    finally:
        entry.value = before
    for process in machine.processes.values():
        process.exit()
    machine.check()


@pytest.mark.parametrize("debug", [0, 1])
def test_it_is_not_looked_for_otherwise(debug):
    with rm.Machine(**SMALL, debug=debug) as machine:
        p = machine.spawn()
        at = p.mmap(None, 2 * P, RW, ANON)
        p.write(at, b"x")
        entry = ctypes.c_uint64.from_address(machine.va(p.walk(at)[-1].address))
        before, entry.value = entry.value, 0
        p.mprotect(at + P, P, PROT_READ)
        with pytest.raises(rm.InvariantError):
            machine.check()
        entry.value = before
        machine.check()


def test_calls_answer_as_ever(machine):
    p = machine.spawn()
    at = p.mmap(None, 2 * P, RW, ANON)
    p.write(at, b"abc")
    assert p.read(at, 3) == b"abc" and p.mincore(at, 2 * P) == b"\1\0"
    with pytest.raises(OSError, match="Invalid"):
        p.munmap(at + 1, P)
    with pytest.raises(rm.SegmentationFault) as caught:
        p.write(at + P, b"x" * (P + 1))
    assert caught.value.done == P
    child = p.fork()
    assert isinstance(child, rm.Process) and child.read(at, 3) == b"abc"
    child.exit(3)
    assert p.wait() == (child.pid, 3 << 8)
    p.exit()
    with pytest.raises(ProcessLookupError):
        p.mmap(None, P, RW, ANON)


def test_threads_do_not_see_each_other_half_done(machine):
    wrong = []

    def work():
        try:
            process = machine.spawn()
            for i in range(25):
                at = process.mmap(None, 8 * P, RW, ANON | (rm.MAP_POPULATE if i % 2 else 0))
                process.view(at, P)[0] = 1
                process.madvise(at, P, rm.MADV_GUARD_INSTALL if i % 3 else rm.MADV_DONTNEED)
                child = process.fork()
                with suppress(rm.SegmentationFault):
                    child.fill(at + P, 4 * P, 1)
                child.exit()
                process.wait()
                process.munmap(at, 8 * P)
            process.exit()
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
