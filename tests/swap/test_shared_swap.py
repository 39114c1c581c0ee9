"""Swapping of shared anonymous memory: one page in its object, however many map it."""

from __future__ import annotations

import errno

import numpy as np
import pytest

import realmem as rm
from realmem import MADV_PAGEOUT, MADV_REMOVE, MADV_WILLNEED, PAGE_SIZE, PROT_READ, PROT_WRITE

RW, P = PROT_READ | PROT_WRITE, PAGE_SIZE
SHARED = rm.MAP_SHARED | rm.MAP_ANONYMOUS


def pages(p, n):
    """Map n shared pages, each full of its number plus one."""
    a = p.mmap(None, n * P, RW, SHARED)
    for i in range(n):
        p.fill(a + i * P, P, i + 1)
    return a


def bytes_of(n):
    return b"".join(bytes([i + 1]) * P for i in range(n))


def used_slots(machine):
    total, free, _ = machine._paging.mmu.swap_counts
    return total - free


def swap_out(machine, n):
    """Have reclaim swap until n slots are in use."""
    for _ in range(100):
        if used_slots(machine) >= n:
            return
        machine.reclaim(64)
    raise AssertionError(f"{used_slots(machine)} of {n} pages were swapped")


def test_a_page_goes_and_comes_back(machine, p):
    a = pages(p, 8)
    before = machine.vmstat.snapshot()
    p.madvise(a, 8 * P, MADV_PAGEOUT)
    assert used_slots(machine) == 8 and p.rss == 0 and p.swap == 0
    assert not any(word >> 56 for word in p.pagemap(a, 8))      # the page table has nothing of it
    assert machine.vmstat["nr_shmem"] == before["nr_shmem"] - 8
    smaps = machine.procfs[f"/proc/{p.pid}/smaps"]
    area = smaps[smaps.index(f"{a:08x}"):]
    assert "Swap:                 32 kB" in area and "SwapPss:               0 kB" in area
    faults = p.maj_flt
    assert p.read(a, 8 * P) == bytes_of(8)
    assert 1 <= p.maj_flt - faults <= 2         # the others were read ahead
    assert used_slots(machine) == 0 and machine.vmstat["nr_shmem"] == before["nr_shmem"]
    after = machine.vmstat.snapshot()
    assert (after["pswpout"] - before["pswpout"], after["pswpin"] - before["pswpin"]) == (8, 8)


@pytest.mark.conformance("MC-13")
def test_mincore_says_that_it_is_not_there(p):
    a = pages(p, 4)
    p.madvise(a, 2 * P, MADV_PAGEOUT)
    assert bytes(p.mincore(a, 4 * P)) == bytes([0, 0, 1, 1])


@pytest.mark.conformance("SW-18")
def test_will_need_reads_into_the_cache(machine, p):
    a = pages(p, 16)
    p.madvise(a, 16 * P, MADV_PAGEOUT)
    p.madvise(a + 4 * P, 8 * P, MADV_WILLNEED)
    assert machine._paging.mmu.swap_counts[2] == 8
    assert "SwapCached:           32 kB" in machine.procfs["/proc/meminfo"]
    assert bytes(p.mincore(a, 16 * P)) == bytes([0] * 4 + [1] * 8 + [0] * 4)
    before = p.maj_flt, p.min_flt
    assert p.read(a + 4 * P, P) == bytes([5]) * P
    assert (p.maj_flt, p.min_flt) == (before[0], before[1] + 1)
    while machine._paging.mmu.swap_counts[2]:   # what nobody came for is given up
        machine.reclaim(64)
    assert p.read(a, 16 * P) == bytes_of(16)


def test_processes_that_share_see_each_other_s_stores(machine, p):
    a = pages(p, 16)
    child = p.fork()
    child.read(a, 16 * P)
    swap_out(machine, 16)
    assert p.rss == child.rss == 0
    child.write(a + P, b"child")
    p.write(a + 2 * P, b"parent")
    assert p.read(a + P, 5) == b"child" and child.read(a + 2 * P, 6) == b"parent"
    child.exit()
    swap_out(machine, 16)
    assert p.read(a + P, 6) == b"child\2" and p.read(a + 2 * P, 7) == b"parent\3"
    assert p.read(a + 3 * P, 13 * P) == bytes_of(16)[3 * P:]


def test_raw_accesses(machine, p):
    a = pages(p, 40)
    x = np.frombuffer(p.view(a, 40 * P), dtype=np.uint8)
    x[::P] = 77
    swap_out(machine, 40)
    assert x[::P].tolist() == [77] * 40 and x[1::P].tolist() == list(range(1, 41))
    swap_out(machine, 40)
    x[2::P] = 5                         # a store first
    assert x[1::P].tolist() == list(range(1, 41)) and x[2::P].tolist() == [5] * 40


def test_slots_go_with_the_pages(machine, p):
    """A hole, and the last unmapping; what some still map keeps its slot."""
    a = pages(p, 16)
    child = p.fork()
    swap_out(machine, 16)
    read = machine.vmstat["pswpin"]
    p.madvise(a, 4 * P, MADV_REMOVE)
    assert used_slots(machine) == 12
    p.munmap(a, 16 * P)
    assert used_slots(machine) == 12 and machine.vmstat["pswpin"] == read
    assert child.read(a, 4 * P) == bytes(4 * P)
    assert child.read(a + 4 * P, 12 * P) == bytes_of(16)[4 * P:]
    swap_out(machine, 16)
    child.exit()
    assert used_slots(machine) == 0


def test_promises_are_kept_over_swap(machine, p):
    """Of MAP_NORESERVE memory each page that there is counts, wherever it is."""
    before = machine._paging.mmu.committed
    a = p.mmap(None, 32 * P, RW, SHARED | rm.MAP_NORESERVE)
    p.fill(a, 8 * P, 1)
    assert machine._paging.mmu.committed == before + 8
    swap_out(machine, 8)
    assert machine._paging.mmu.committed == before + 8
    p.madvise(a, 2 * P, MADV_REMOVE)
    assert machine._paging.mmu.committed == before + 6
    p.read(a + 2 * P, 6 * P)
    assert machine._paging.mmu.committed == before + 6
    p.munmap(a, 32 * P)
    assert machine._paging.mmu.committed == before


def test_locked_and_pinned_pages_stay(machine, p):
    a = pages(p, 16)
    p.mlock(a, 4 * P)
    with p.pin(a + 4 * P, 4 * P):
        for _ in range(8):
            machine.reclaim(1000)
        p.madvise(a + 4 * P, 4 * P, MADV_PAGEOUT)
        assert bytes(p.mincore(a, 16 * P)) == bytes([1] * 8 + [0] * 8)
    p.munlock(a, 4 * P)
    swap_out(machine, 16)
    assert p.read(a, 16 * P) == bytes_of(16)


@pytest.mark.conformance("SW-17")
def test_swapoff(machine, p, tmp_path):
    a = pages(p, 50)
    private = p.mmap(None, 20 * P, RW, rm.MAP_PRIVATE | rm.MAP_ANONYMOUS)
    p.fill(private, 20 * P, 9)
    swap_out(machine, 70)
    machine.swapoff(tmp_path / "swap")
    assert used_slots(machine) == 0 and p.swap == 0
    assert p.read(a, 50 * P) == bytes_of(50) and p.read(private, 20 * P) == bytes([9]) * 20 * P


def test_swapoff_without_room(machine, p, tmp_path):
    a = p.mmap(None, 24 << 20, RW, SHARED)
    p.fill(a, 24 << 20, 7)
    with pytest.raises(OSError) as caught:
        machine.swapoff(tmp_path / "swap")
    assert caught.value.errno == errno.ENOMEM
    machine.check()
    assert p.read(a, 24 << 20).count(7) == 24 << 20


@pytest.mark.parametrize("raw", [False, True])
def test_three_times_the_memory(machine, p, raw):
    """Two processes that share it: each byte is right."""
    n = (48 << 20) // P
    a = p.mmap(None, n * P, RW, SHARED)
    child = p.fork()
    both = [p, child]
    rng = np.random.default_rng(6)
    expected = np.zeros(n, dtype=np.uint64)
    x = [np.frombuffer(each.view(a, n * P), dtype=np.uint64)[:: P // 8] for each in both]
    for turn in range(1, 4):
        for i in rng.integers(0, n, n // 2):
            expected[i] = turn << 32 | int(i)
            if raw:
                x[i % 2][i] = expected[i]
                assert x[1 - i % 2][i] == expected[i]
            else:
                both[i % 2].write(a + int(i) * P, int(expected[i]).to_bytes(8, "little"))
    for i in range(n):
        found = x[i % 2][i] if raw else int.from_bytes(both[i % 2].read(a + i * P, 8), "little")
        assert found == expected[i], i
    assert machine.vmstat["pswpout"] > n // 2


def test_a_store_that_fails(machine, p, tmp_path):
    """What cannot be read back is BusError, and still there when it can."""
    a = pages(p, 4)
    p.madvise(a, 2 * P, MADV_PAGEOUT)
    whole = (tmp_path / "swap").read_bytes()
    with (tmp_path / "swap").open("r+b") as file:
        file.truncate(P)
        with pytest.raises(rm.BusError) as caught:
            p.read(a, P)
        assert caught.value.address == a
        file.write(whole)
    assert p.read(a, 4 * P) == bytes_of(4)
