"""Entries that make the next access fault, so that it is seen from which node it comes."""

from __future__ import annotations

import pytest

import realmem as rm
from realmem import (
    MADV_GUARD_INSTALL,
    MAP_ANONYMOUS,
    MAP_PRIVATE,
    MAP_SHARED,
    PAGE_SIZE,
    PROT_NONE,
    PROT_READ,
    PROT_WRITE,
)

RW, ANON, SHARED = PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, MAP_SHARED | MAP_ANONYMOUS
P = PAGE_SIZE
NAMES = ("numa_pte_updates", "numa_hint_faults", "numa_hint_faults_local")


@pytest.fixture
def machine():
    with rm.Machine(nodes=2, memory="32M", window="1G") as machine:
        yield machine
        machine.check()


@pytest.fixture
def process(machine):
    return machine.spawn(node=0)


def hint(process, addr, length):
    process.mm.core.madvise(addr, addr + length, "numa_hint")


def counts(machine):
    return tuple(machine.vmstat[name] for name in NAMES)


def flags(process, addr):
    return process.walk(addr)[-1].decoded["flags"]


@pytest.mark.parametrize("kind", [ANON, SHARED], ids=["private", "shared"])
@pytest.mark.parametrize("write", [False, True], ids=["read", "write"])
@pytest.mark.parametrize("raw", [False, True], ids=["software", "raw"])
def test_the_next_access_lifts_it(machine, process, kind, write, raw):
    at = process.mmap(None, 4 * P, RW, kind)
    process.fill(at, 3 * P, 7)
    view = process.view(at, 4 * P)
    if raw:
        assert view[0] == 7                     # the host maps it, too
    pfn = process.walk(at)[-1].decoded["pfn"]
    hint(process, at, 4 * P)
    machine.check()
    assert flags(process, at) >= {"protnone", "rw"} and "present" not in flags(process, at)
    assert counts(machine) == (3, 0, 0)         # what is not there is no page's hint
    faults = process.min_flt
    if raw and write:
        view[1] = 9
    elif raw:
        assert view[1] == 7
    elif write:
        process.write(at + 1, b"\x09")
    else:
        assert process.read(at + 1, 1) == b"\7"
    assert counts(machine)[:2] == (3, 1)
    assert process.min_flt == faults + 1
    assert "protnone" not in flags(process, at) and "present" in flags(process, at)
    assert "protnone" in flags(process, at + P)
    assert process.walk(at)[-1].decoded["pfn"] == pfn
    assert process.read(at, 3) == (b"\7\x09\7" if write else b"\7\7\7")


def test_who_is_at_home_is_counted(machine, process):
    at = process.mmap(None, 4 * P, RW, ANON)
    process.fill(at, 4 * P, 7)
    hint(process, at, 4 * P)
    process.touch(at, P)
    process.run_on(node=1)
    process.touch(at + P, 2 * P)
    assert counts(machine) == (4, 3, 1)


def test_it_does_not_open_what_is_shared_with_a_child(machine, process):
    at = process.mmap(None, 2 * P, RW, ANON)
    process.fill(at, 2 * P, 7)
    hint(process, at, P)
    child = process.fork()                      # a hint is inherited
    assert "protnone" in flags(child, at)
    hint(child, at + P, P)
    faults = child.min_flt
    child.write(at, b"\1")
    child.view(at, 2 * P)[P] = 1
    assert child.min_flt == faults + 4          # each a hint, then a copy
    assert process.read(at, 1) + process.read(at + P, 1) == b"\7\7"
    assert child.read(at, 1) + child.read(at + P, 1) == b"\1\1"


def test_what_may_not_be_touched_is_no_hint(machine, process):
    at = process.mmap(None, 2 * P, RW, ANON)
    process.fill(at, 2 * P, 7)
    hint(process, at, P)
    process.mprotect(at, 2 * P, PROT_NONE)
    with pytest.raises(rm.SegmentationFault):
        process.read(at, 1)
    process.mprotect(at, 2 * P, RW)             # whose entries are made anew
    assert process.read(at, 1) == b"\7"
    assert counts(machine) == (1, 0, 0)


def test_the_zero_page_and_guards_get_none(machine, process):
    at = process.mmap(None, 2 * P, RW, ANON)
    process.touch(at, P)
    process.madvise(at + P, P, MADV_GUARD_INSTALL)
    hint(process, at, 2 * P)
    assert counts(machine) == (0, 0, 0)
    assert process.walk(at + P)[-1].decoded == {"type": "guard", "flags": frozenset()}


def test_a_huge_entry_is_split_for_it(machine, process):
    machine.sysfs["/sys/kernel/mm/transparent_hugepage/hugepages-2048kB/enabled"] = "always"
    at = process.mmap(None, 4 << 20, RW, ANON)
    at = (at + (2 << 20) - 1) & -(2 << 20)
    process.write(at, b"x")
    assert "huge" in process.walk(at)[-1].decoded["flags"]
    hint(process, at + 5 * P, P)
    assert "protnone" in flags(process, at + 5 * P)
    assert "present" in flags(process, at + 4 * P)
    process.write(at + 5 * P, b"y")
    assert process.read(at + 5 * P, 2) == b"y\0"
