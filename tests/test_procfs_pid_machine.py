"""The files of processes on real memory: they say what was done."""

from __future__ import annotations

import errno

import pytest

from realmem.layout import (
    MAP_ANONYMOUS,
    MAP_PRIVATE,
    MAP_SHARED,
    PAGE_SIZE,
    PROT_READ,
    PROT_WRITE,
)
from realmem.machine import Machine
from realmem.procfs.pid.maps import parse_maps
from realmem.procfs.pid.numa_maps import parse_numa_maps
from realmem.procfs.pid.smaps import parse_smaps
from realmem.procfs.pid.stat import parse_stat, parse_statm

P = PAGE_SIZE
RW = PROT_READ | PROT_WRITE
ANON = MAP_PRIVATE | MAP_ANONYMOUS
SOFT_DIRTY, EXCLUSIVE, FILE, PRESENT = 1 << 55, 1 << 56, 1 << 61, 1 << 63


@pytest.fixture
def machine():
    with Machine(nodes=2, memory="64M", window="1G") as machine:
        yield machine
        machine.check()


@pytest.fixture
def p(machine):
    return machine.spawn()


def entry_of(p, addr):
    return next(e for e in parse_smaps(p.smaps()) if e.area.start <= addr < e.area.end)


def status_kb(p):
    pairs = (line.split(":\t") for line in p.status().splitlines())
    return {name: int(value.split()[0]) for name, value in pairs if value.endswith(" kB")}


@pytest.mark.conformance("PF-05")
def test_maps_is_what_is_mapped(p):
    a = p.mmap(None, 4 * P, RW, ANON)
    p.mprotect(a + P, P, PROT_READ)
    b = p.mmap(None, 4 * P, RW, MAP_SHARED | MAP_ANONYMOUS)
    p.munmap(b, P)
    p.brk(p.brk() + 3 * P)
    areas = parse_maps(p.maps())
    assert [(area.start, area.end) for area in areas] == [(v.start, v.end) for v in p.vmas]
    shared = next(area for area in areas if area.start == b + P)
    assert shared.offset == P and shared.inode and shared.name == "/dev/zero (deleted)"
    other = p.mmap(None, P, RW, MAP_SHARED | MAP_ANONYMOUS)
    assert next(x for x in parse_maps(p.maps()) if x.start == other).inode != shared.inode
    assert areas[0].name == "[heap]"
    assert [e.area for e in parse_smaps(p.smaps())] == parse_maps(p.maps())


@pytest.mark.conformance("PF-07")
def test_shared_pages_are_shared_out(p):
    a = p.mmap(None, 250 * P, RW, ANON)
    p.write(a, b"x" * 250 * P)
    child = p.fork()
    b = p.mmap(a - 1024 * P, 250 * P, RW, ANON)
    p.write(b, b"x" * 250 * P)
    (rollup,) = parse_smaps(p.machine.procfs[f"/proc/{p.pid}/smaps_rollup"])
    assert rollup.kb["Rss"] == 2000 and rollup.kb["Pss"] == 1500
    assert rollup.kb["Shared_Dirty"] == 1000 == rollup.kb["Private_Dirty"]
    assert entry_of(child, a).kb["Pss"] == 500
    child.exit()
    assert entry_of(p, a).kb["Pss"] == entry_of(p, a).kb["Private_Dirty"] == 1000


@pytest.mark.conformance("PF-10", "PF-16")
def test_the_zero_page_is_nobodys(p):
    a = p.mmap(None, 4 * P, RW, ANON)
    p.read(a, 4 * P)
    kb = entry_of(p, a).kb
    assert kb["Rss"] == kb["Pss"] == kb["Anonymous"] == kb["Referenced"] == 0
    for word in p.pagemap(a, 4):
        assert word & PRESENT and not word & (FILE | EXCLUSIVE)


@pytest.mark.conformance("PF-15", "FK-29")
def test_pagemap(machine, p):
    a = p.mmap(None, 2 * P, RW, ANON)
    b = p.mmap(None, 2 * P, RW, MAP_SHARED | MAP_ANONYMOUS)
    p.write(a, b"x")
    p.write(b, b"x")
    private, untouched = p.pagemap(a, 2)
    assert private & (PRESENT | EXCLUSIVE | FILE) == PRESENT | EXCLUSIVE
    assert private & (1 << 55) - 1 == p.walk(a)[-1].decoded["pfn"] != 0
    assert not untouched & ~SOFT_DIRTY
    assert p.pagemap(b, 1)[0] & (PRESENT | FILE) == PRESENT | FILE
    assert p.pagemap(a - 1024 * P, 1) == [0]
    child = p.fork()
    assert not p.pagemap(a, 1)[0] & EXCLUSIVE and not child.pagemap(a, 1)[0] & EXCLUSIVE
    child.exit()
    assert p.pagemap(a, 1)[0] & EXCLUSIVE


@pytest.mark.conformance("PF-17")
def test_clear_refs(machine, p):
    path = f"/proc/{p.pid}/clear_refs"
    a = p.mmap(None, 4 * P, RW, ANON)
    b = p.mmap(None, 4 * P, RW, MAP_SHARED | MAP_ANONYMOUS)
    for addr in (a, b):
        p.write(addr, b"x" * 4 * P)

    def referenced():
        return entry_of(p, a).kb["Referenced"], entry_of(p, b).kb["Referenced"]

    assert referenced() == (16, 16)
    machine.procfs[path] = "2"
    assert referenced() == (0, 16)
    machine.procfs[path] = "3"
    assert referenced() == (0, 0)
    p.read(a, 1)
    p.read(b, 2 * P)
    assert referenced() == (4, 8)
    machine.procfs[path] = "1"
    assert referenced() == (0, 0)
    for text in ("0", "6", "x"):
        with pytest.raises(OSError) as caught:
            machine.procfs[path] = text
        assert caught.value.errno == errno.EINVAL


@pytest.mark.conformance("PF-18", "MM-60")
def test_soft_dirty(machine, p):
    a = p.mmap(None, 3 * P, RW, ANON)
    p.write(a, b"x" * 3 * P)
    assert all(word & SOFT_DIRTY for word in p.pagemap(a, 3))
    machine.procfs[f"/proc/{p.pid}/clear_refs"] = "4"
    assert not any(word & SOFT_DIRTY for word in p.pagemap(a, 3))
    assert "sd" not in entry_of(p, a).flags and "sd" not in p.find_vma(a).vm_flags
    p.mprotect(a, 3 * P, PROT_READ)
    p.mprotect(a, 3 * P, RW)
    p.read(a, 3 * P)
    assert not any(word & SOFT_DIRTY for word in p.pagemap(a, 3))
    p.write(a + P, b"y")
    assert [bool(word & SOFT_DIRTY) for word in p.pagemap(a, 3)] == [False, True, False]
    b = p.mmap(None, P, PROT_READ, ANON)
    assert p.pagemap(b, 1)[0] & SOFT_DIRTY, "what is new is dirty before it is touched"


@pytest.mark.conformance("MA-30")
def test_populate_and_soft_dirty(machine, p):
    a = p.mmap(None, 2 * P, RW, ANON)
    machine.procfs[f"/proc/{p.pid}/clear_refs"] = "4"
    p.madvise(a, P, 22)
    p.madvise(a + P, P, 23)
    assert [bool(word & SOFT_DIRTY) for word in p.pagemap(a, 2)] == [False, True]


@pytest.mark.conformance("PF-20")
def test_numa_maps(p):
    a = p.mmap(None, 8 * P, RW, ANON)
    p.write(a, b"x" * 5 * P)
    p.read(a + 6 * P, 1)
    area = next(area for area in parse_numa_maps(p.numa_maps()) if area.start == a)
    assert sum(area.nodes.values()) == area.mapped == area.anon == p.rss == 5


@pytest.mark.conformance("PF-21", "PF-22")
def test_status(machine, p):
    a = p.mmap(None, 64 * P, RW, ANON)
    b = p.mmap(None, 16 * P, PROT_READ, ANON)
    c = p.mmap(None, 16 * P, RW, MAP_SHARED | MAP_ANONYMOUS)
    p.write(a, b"x" * 32 * P)
    p.write(c, b"x" * 4 * P)
    p.mlock2(b, 16 * P, 1)
    kb = status_kb(p)
    assert kb["VmRSS"] == kb["RssAnon"] + kb["RssFile"] + kb["RssShmem"] == 36 * 4
    assert kb["RssShmem"] == 16 and kb["VmData"] == 256 and kb["VmLck"] == 64
    assert kb["VmSize"] == kb["VmPeak"] == 96 * 4 and kb["VmHWM"] == 36 * 4
    p.munmap(a, 64 * P)
    kb = status_kb(p)
    assert kb["VmSize"] == 32 * 4 and kb["VmPeak"] == 96 * 4
    assert kb["VmRSS"] == 16 and kb["VmHWM"] == 36 * 4
    machine.procfs[f"/proc/{p.pid}/clear_refs"] = "5"
    assert status_kb(p)["VmHWM"] == 16 and status_kb(p)["VmPeak"] == 96 * 4
    statm = parse_statm(machine.procfs[f"/proc/{p.pid}/statm"])
    assert (statm["size"], statm["resident"], statm["shared"]) == (32, 4, 4)
    fields = parse_stat(machine.procfs[f"/proc/{p.pid}/stat"])
    assert (fields["rss"], fields["vsize"], fields["minflt"]) == (4, 32 * P, p.min_flt)


def test_files_come_and_go_with_processes(machine, p):
    child = p.fork("a child")
    assert f"/proc/{child.pid}/maps" in machine.procfs
    assert "Name:\ta child\nUmask" in machine.procfs[f"/proc/{child.pid}/status"]
    child.exit()
    assert f"/proc/{child.pid}/maps" not in machine.procfs
    with pytest.raises(ProcessLookupError):
        child.maps()
    with pytest.raises(ProcessLookupError):
        child.pagemap(0, 1)
    with pytest.raises(ProcessLookupError):
        child.draw()


def test_picture(p):
    a = p.mmap(None, 64 * P, RW, ANON)
    p.write(a + 32 * P, b"x" * 32 * P)
    row = next(line for line in p.draw(100, color=False, ascii=True).splitlines()
               if line.strip().startswith(f"{a:x} "))
    cells = row[row.index("[") + 1 : row.index("]")]
    assert " 50%" in row and set(cells[: len(cells) // 2 - 1]) == {"."}
    assert set(cells[len(cells) // 2 + 1 :]) == {"#"}
