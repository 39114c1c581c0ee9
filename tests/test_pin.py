"""p.pin(): what host system calls may be handed."""

from __future__ import annotations

import os

import pytest
from backends import BACKENDS, needs_backend

import realmem as rm
from realmem import (
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_PRIVATE,
    MAP_SHARED,
    PAGE_SIZE,
    PROT_NONE,
    PROT_READ,
    PROT_WRITE,
)

RW, ANON = PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS
P = PAGE_SIZE


@pytest.fixture
def machine():
    with rm.Machine(nodes=1, memory="64M", window="1G", host_vmas=2000) as machine:
        yield machine
        machine.check()


@pytest.fixture
def process(machine):
    return machine.spawn()


def flush(process, addr, length):
    process.mm.core.flush(addr, addr + length)


def test_a_host_system_call_needs_it(process):
    at = process.mmap(None, 4 * P, RW, ANON)
    process.write(at, b"a" * 4 * P)
    flush(process, at, 4 * P)
    source, sink = os.pipe()
    try:
        with pytest.raises(OSError):
            os.write(sink, process.view(at, 100))           # EFAULT: no signal comes
        with process.pin(at + 5, 2 * P) as view:
            assert view.readonly and len(view) == 2 * P
            assert os.write(sink, view) == 2 * P
        assert os.read(source, 3 * P) == b"a" * 2 * P
        os.write(sink, b"from the host")
        with process.pin(at + P - 3, 13, write=True) as view:
            assert os.readv(source, [view]) == 13
        assert process.read(at + P - 3, 13) == b"from the host"
    finally:
        os.close(source)
        os.close(sink)


def test_it_is_not_flushed_for_the_budget(machine, process):
    at = process.mmap(None, 8192 * P, RW, ANON)
    with process.pin(at, 3 * P, write=True) as view:
        before = machine.hoststat["sigsegv"]
        other = process.view(at + 4096 * P, 4096 * P)
        for page in range(0, 4096, 2):                      # past the budget, a host VMA each
            other[page * P] = 1
        # By userfaultfd they take no host VMA each.
        assert machine.hoststat["map_flush"] > 0 or machine.faults == "userfaultfd"
        met = machine.hoststat["sigsegv"] - before
        view[0] = view[P] = view[2 * P] = 9
        assert machine.hoststat["sigsegv"] - before == met
        other.release()


@pytest.mark.parametrize("write", [False, True])
@pytest.mark.conformance("FK-09")
def test_a_fork_copies_what_is_pinned(machine, process, write):
    at = process.mmap(None, 2 * P, RW, ANON)
    process.write(at, b"parent")
    frame = process.walk(at)[-1].decoded["pfn"]
    with process.pin(at, P, write=write) as view:
        child = process.fork()
        process.write(at, b"PARENT")
        assert bytes(view[:6]) == b"PARENT"                 # the pin sees the parent's page
        assert process.walk(at)[-1].decoded["pfn"] == frame
        assert child.read(at, 6) == b"parent"
        assert child.walk(at)[-1].decoded["pfn"] != frame
        machine.check()
    assert machine.pfn_to_page(frame).refcount == 1


@pytest.mark.parametrize("faults", BACKENDS)
@pytest.mark.parametrize("how", ["zero page", "mapped anew", "shared"])
def test_a_fork_shares_what_came_to_lie_where_something_is_pinned(how, faults):
    """The pin holds another page, or none: the parent's next store must not reach the child's."""
    needs_backend(faults)
    with rm.Machine(nodes=1, memory="64M", window="1G", faults=faults) as machine:
        process = machine.spawn()
        at = process.mmap(None, 3 * P, RW, ANON)
        words = process.view(at, 3 * P)
        words[P] = words[2 * P] = 1                         # pages of the run
        if how != "zero page":
            words[0] = 1
        pin = process.pin(at, P)
        pin.__enter__()
        if how != "zero page":
            process.munmap(at, P)
            process.mmap(at, P, RW, ANON | MAP_FIXED)
        words[0] = 2
        if how == "shared":
            other = process.fork()
        child = process.fork()
        words[0] = 3
        machine.check()
        assert child.read(at, 1) == b"\2" and process.read(at, 1) == b"\3"
        if how == "shared":
            assert other.read(at, 1) == b"\2"
        pin.__exit__(None, None, None)
        machine.check()
        words.release()


@pytest.mark.conformance("FK-10")
def test_a_child_s_pin_outlives_its_mapping(process):
    at = process.mmap(None, P, RW, ANON)
    process.write(at, b"old")
    child = process.fork()
    pin = child.pin(at, P)
    pin.__enter__()
    frame = child.walk(at)[-1].decoded["pfn"]
    child.munmap(at, P)
    process.write(at, b"new")
    page = child.machine.pfn_to_page(frame)
    assert page.refcount == 1024
    assert bytes(child.machine.view(page.address, 3)) == b"old"
    pin.__exit__(None, None, None)
    assert page.refcount == 0


@pytest.mark.conformance("FK-11")
def test_a_pin_to_read_makes_a_shared_page_its_own(process):
    at = process.mmap(None, P, RW, ANON)
    process.write(at, b"1")
    child = process.fork()
    shared = process.walk(at)[-1].decoded["pfn"]
    with process.pin(at, P) as view:
        own = process.walk(at)[-1].decoded["pfn"]
        assert own != shared == child.walk(at)[-1].decoded["pfn"]
        process.write(at, b"2")
        assert process.walk(at)[-1].decoded["pfn"] == own and view[0] == ord("2")
    assert child.read(at, 1) == b"1"


def test_shared_memory_and_the_zero_page(process):
    at = process.mmap(None, 2 * P, RW, MAP_SHARED | MAP_ANONYMOUS)
    with process.pin(at, 2 * P, write=True) as view:
        child = process.fork()
        child.write(at, b"hello")
        assert bytes(view[:5]) == b"hello"
    empty = process.mmap(None, P, RW, ANON)
    with process.pin(empty, P) as view:
        assert bytes(view) == bytes(P)
    assert process.rss == 2


def test_what_may_not_be_pinned(machine, process):
    at = process.mmap(None, 4 * P, RW, ANON)
    process.mmap(at + 2 * P, P, PROT_READ, ANON | MAP_FIXED)
    process.mmap(at + 3 * P, P, PROT_NONE, ANON | MAP_FIXED)
    for addr, length, write, where, code in (
        (at + 5, 3 * P, True, at + 2 * P, rm.SEGV_ACCERR),
        (at, 4 * P, False, at + 3 * P, rm.SEGV_ACCERR),
        (at - P, P, False, at - P, rm.SEGV_MAPERR),
        (0, 1, False, 0, rm.SEGV_MAPERR),
        ((1 << 47) + 5, 1, False, (1 << 47) + 5, rm.SEGV_MAPERR),
    ):
        with pytest.raises(rm.SegmentationFault) as caught, process.pin(addr, length, write):
            pass
        assert (caught.value.address, caught.value.code) == (where, code)
        assert caught.value.done == where - addr
        machine.check()
    with pytest.raises(TypeError):
        process.pin("x", 1)
    free = sum(node.free_pages for node in machine.nodes)
    process.munmap(at, 4 * P)
    machine.drain_all_pages()
    assert sum(node.free_pages for node in machine.nodes) >= free     # no frame is held


def test_pins_that_outlive_their_process_and_machine():
    with rm.Machine(nodes=1, memory="32M", window="1G") as machine:
        process = machine.spawn()
        at = process.mmap(None, 16 * P, RW, ANON)
        pins = [process.pin(at + i * P, 2 * P, write=True) for i in range(10)]
        views = [pin.__enter__() for pin in pins]
        process.exit()
        with pytest.raises(ProcessLookupError):
            process.pin(at, P)
        machine.check()
        del views
        pins[0].__exit__(None, None, None)
        pins[0].__exit__(None, None, None)
        machine.check()
    del pins
