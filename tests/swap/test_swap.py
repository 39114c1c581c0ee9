"""Swapping, line by line of the catalogue: what goes, what comes back, what counts it."""

from __future__ import annotations

import errno
import os
import threading
import time

import numpy as np
import pytest

import realmem as rm
from realmem import (
    MADV_DONTNEED,
    MADV_FREE,
    MADV_PAGEOUT,
    MADV_WILLNEED,
    MAP_ANONYMOUS,
    MAP_PRIVATE,
    PAGE_SIZE,
    PROT_READ,
    PROT_WRITE,
)
from realmem.errors import BusError

RW, P = PROT_READ | PROT_WRITE, PAGE_SIZE
PRIVATE = MAP_PRIVATE | MAP_ANONYMOUS
SWAPPED, PRESENT = 1 << 62, 1 << 63


def pages(p, n):
    """Map n pages, each full of its number plus one."""
    a = p.mmap(None, n * P, RW, PRIVATE)
    for i in range(n):
        p.fill(a + i * P, P, i + 1)
    return a


def swapped(p, a, n):
    """Say of each page whether it is swapped out."""
    return [bool(word & SWAPPED) for word in p.pagemap(a, n)]


def free_slots(machine):
    return machine._paging.mmu.swap_counts[1]


@pytest.mark.conformance("SW-01", "MA-33", "CT-18")
def test_a_page_goes_and_comes_back(machine, p):
    machine.sysctl["vm.page-cluster"] = 0
    a = pages(p, 4)
    before = machine.vmstat.snapshot()
    faults = p.maj_flt
    p.madvise(a, 4 * P, MADV_PAGEOUT)
    assert swapped(p, a, 4) == [True] * 4
    assert p.rss == 0 and p.swap == 4
    assert p.read(a, 4 * P) == b"".join(bytes([i + 1]) * P for i in range(4))
    after = machine.vmstat.snapshot()
    assert {name: after[name] - before[name] for name in (
        "pswpout", "pswpin", "pgmajfault", "pgfault")} == {
        "pswpout": 4, "pswpin": 4, "pgmajfault": 4, "pgfault": 4}
    assert p.maj_flt - faults == 4 and p.swap == 0


@pytest.mark.conformance("MA-38")
def test_another_process_is_paged_out(machine, p):
    a = pages(p, 4)
    other = machine.spawn()
    other.process_madvise([(a, 2 * P)], MADV_PAGEOUT, p)
    assert swapped(p, a, 4) == [True, True, False, False]


@pytest.mark.conformance("MC-08")
def test_mincore_says_that_they_are_not_there(p):
    a = pages(p, 4)
    p.madvise(a, 2 * P, MADV_PAGEOUT)
    assert bytes(p.mincore(a, 4 * P)) == bytes([0, 0, 1, 1])
    p.madvise(a, P, MADV_WILLNEED)
    assert bytes(p.mincore(a, 4 * P)) == bytes([1, 0, 1, 1]) and p.rss == 2


@pytest.mark.conformance("MA-25")
def test_pages_are_read_ahead(machine, p):
    """When asked, and around what is read: the first access is a minor fault then."""
    a = pages(p, 64)
    p.madvise(a, 64 * P, MADV_PAGEOUT)
    p.madvise(a, 32 * P, MADV_WILLNEED)
    assert machine._paging.mmu.swap_counts[2] == 32 and p.swap == 64
    assert "SwapCached:          128 kB" in machine.procfs["/proc/meminfo"]
    before = p.maj_flt, machine.vmstat["pswpin"]
    assert p.read(a, 32 * P)[::P] == bytes(range(1, 33))
    assert (p.maj_flt, machine.vmstat["pswpin"]) == before
    assert p.read(a + 32 * P, 32 * P)[::P] == bytes(range(33, 65))
    assert 4 <= p.maj_flt - before[0] <= 5 and machine.vmstat["pswpin"] - before[1] == 32


def test_what_was_read_ahead_can_be_taken_back(machine, p):
    a = pages(p, 64)
    p.madvise(a, 64 * P, MADV_PAGEOUT)
    p.madvise(a, 64 * P, MADV_WILLNEED)
    written = machine.vmstat["pswpout"]
    while machine._paging.mmu.swap_counts[2]:
        machine.reclaim(64)
    assert machine.vmstat["pswpout"] == written         # it is in its slot still
    assert p.read(a, 64 * P)[::P] == bytes(range(1, 65))


def test_what_proc_says(machine, p):
    a = pages(p, 5)
    child = p.fork()
    while p.swap < 5:
        machine.reclaim(100)
    smaps = machine.procfs[f"/proc/{p.pid}/smaps"]
    area = smaps[smaps.index(f"{a:08x}"):]
    assert "Swap:                 20 kB" in area and "SwapPss:              10 kB" in area
    assert f"VmSwap:\t{20:8d} kB" in machine.procfs[f"/proc/{child.pid}/status"]
    meminfo = dict(line.split()[:2] for line in machine.procfs["/proc/meminfo"].splitlines())
    total = (64 << 10) - 4
    assert (meminfo["SwapTotal:"], meminfo["SwapFree:"]) == (str(total), str(total - 20))
    line = machine.procfs["/proc/swaps"].splitlines()[1].split()
    assert line[1:] == ["file", str((64 << 10) - 4), "20", "-2"]


def test_raw_loads_and_stores_bring_pages_back(machine, p):
    a = pages(p, 40)
    x = np.frombuffer(p.view(a, 40 * P), dtype=np.uint8)
    x[::P] = 77                         # the host has them mapped
    p.madvise(a, 40 * P, MADV_PAGEOUT)
    assert all(swapped(p, a, 40))
    assert x[::P].tolist() == [77] * 40 and x[1::P].tolist() == list(range(1, 41))
    p.madvise(a, 40 * P, MADV_PAGEOUT)
    x[2::P] = 5                         # a store first
    assert x[1::P].tolist() == list(range(1, 41)) and x[2::P].tolist() == [5] * 40
    machine.check()


@pytest.mark.conformance("SW-02")
def test_pagemap_says_where_it_is(p):
    a = pages(p, 2)
    p.madvise(a, 2 * P, MADV_PAGEOUT)
    first, second = p.pagemap(a, 2)
    assert first & SWAPPED and not first & PRESENT
    assert first & 31 == 0 and first >> 5 & (1 << 50) - 1 != second >> 5 & (1 << 50) - 1


@pytest.mark.conformance("SW-06", "FK-04")
def test_a_shared_page_is_written_once_and_stays_shared(machine, p):
    a = pages(p, 1)
    p.madvise(a, P, MADV_PAGEOUT)
    child = p.fork()                    # swapped before the fork
    used = machine._paging.mmu.swap_counts
    assert used[0] - used[1] == 1       # one slot, which both have
    child.write(a, b"child")
    assert p.read(a, 5) == bytes([1]) * 5
    p.write(a, b"parent")
    assert child.read(a, 6) == b"child\1"
    other = p.fork()                    # mapped by two, then swapped
    before = machine.vmstat["pswpout"]
    while not (p.pagemap(a, 1)[0] & SWAPPED and other.pagemap(a, 1)[0] & SWAPPED):
        machine.reclaim(64)
    assert machine.vmstat["pswpout"] - before <= 2      # it, and the first child's
    other.write(a, b"third")
    assert (p.read(a, 6), other.read(a, 6)) == (b"parent", b"thirdt")
    machine.check()


@pytest.mark.conformance("SW-07")
def test_slots_are_given_back_without_reading(machine, p):
    free = free_slots(machine)
    a = pages(p, 8)
    p.madvise(a, 8 * P, MADV_PAGEOUT)
    assert free_slots(machine) == free - 8
    before = machine.vmstat["pswpin"]
    p.madvise(a, 2 * P, MADV_DONTNEED)
    p.madvise(a + 2 * P, 2 * P, MADV_FREE)
    p.munmap(a + 4 * P, 2 * P)
    assert free_slots(machine) == free - 2
    assert p.read(a, 4 * P) == bytes(4 * P)
    p.exit()
    assert free_slots(machine) == free and machine.vmstat["pswpin"] == before


@pytest.mark.conformance("SW-10")
def test_swapped_pages_move(p):
    a = pages(p, 3)
    p.madvise(a, 3 * P, MADV_PAGEOUT)
    b = p.mmap(None, 3 * P, RW, PRIVATE)
    p.mremap(a, 3 * P, 3 * P, rm.MREMAP_MAYMOVE | rm.MREMAP_FIXED, b)
    assert all(swapped(p, b, 3))
    assert p.read(b, 3 * P) == b"".join(bytes([i + 1]) * P for i in range(3))
    with pytest.raises(rm.SegmentationFault):
        p.read(a, 1)


@pytest.mark.conformance("SW-13")
def test_locked_pages_stay(machine, p):
    a = pages(p, 16)
    p.mlock(a, 8 * P)
    for _ in range(8):
        machine.reclaim(1000)
    assert swapped(p, a, 8) == [False] * 8 and all(swapped(p, a + 8 * P, 8))
    assert machine.vmstat["nr_unevictable"] == 8
    p.munlock(a, 8 * P)
    for _ in range(4):
        machine.reclaim(1000)
    assert all(swapped(p, a, 8))


@pytest.mark.conformance("SW-17")
def test_swapoff_brings_all_back(machine, p, tmp_path):
    a = pages(p, 100)
    child = p.fork()
    p.madvise(a, 50 * P, MADV_PAGEOUT)      # mapped by both: not theirs alone
    assert p.swap == 0
    while p.swap < 100:
        machine.reclaim(1000)
    machine.swapoff(tmp_path / "swap")
    assert p.swap == child.swap == 0 and p.rss == child.rss == 100
    assert p.read(a, 100 * P) == child.read(a, 100 * P)
    with pytest.raises(OSError, match="no swap area"):
        machine.swapoff(tmp_path / "swap")
    machine.check()


def test_swapoff_without_room_stays_on(machine, p, tmp_path):
    n = 3000
    a = p.mmap(None, 2 * n * P, RW, PRIVATE)
    p.fill(a, 2 * n * P, 7)
    assert p.swap > n // 2
    with pytest.raises(OSError) as caught:
        machine.swapoff(tmp_path / "swap")
    assert caught.value.errno == errno.ENOMEM
    assert "swap" in machine.procfs["/proc/swaps"]
    machine.check()
    assert p.read(a, 2 * n * P).count(7) == 2 * n * P


@pytest.mark.conformance("SW-19")
def test_priorities(machine, p, tmp_path):
    for name, priority in (("high", 5), ("other", 5)):
        machine.swapon(tmp_path / name, size=1 << 20, priority=priority)
    a = pages(p, 20)
    p.madvise(a, 20 * P, MADV_PAGEOUT)
    assert sorted({word & 31 for word in p.pagemap(a, 20)}) == [1, 2]
    lines = machine.procfs["/proc/swaps"].splitlines()
    assert [line.split()[3:] for line in lines[1:]] == [["0", "-2"], ["40", "5"], ["40", "5"]]
    for name in ("high", "other"):
        machine.swapoff(tmp_path / name)
    assert p.read(a, 20 * P)[::P] == bytes(range(1, 21))


@pytest.mark.conformance("SW-20", "WM-16")
def test_kswapd_is_woken_at_the_low_mark(machine, p):
    """And goes on until every zone is above its high mark."""
    a = p.mmap(None, 32 << 20, RW, PRIVATE)
    written = 0
    while machine.kswapd(0).pages_reclaimed == 0:
        p.write(a + written, written.to_bytes(8, "little"))
        written += P
    # It may have been through before the last page was taken.
    deadline = time.monotonic() + 60
    while machine.drain_all_pages() or any(
            zone.free_pages < zone.watermark.high - 2 for zone in machine.nodes[0].zones):
        assert time.monotonic() < deadline, "kswapd went to sleep too early"
        time.sleep(0.01)
    assert machine.kswapd(0).running and machine.vmstat["pageoutrun"] > 0
    assert all(p.read(a + i, 8) == i.to_bytes(8, "little") for i in range(0, written, P))


def test_a_zone_that_is_full_for_good(tmp_path):
    """Kernel pages fill ZONE_DMA: that is no reason to swap out all that the other zone has."""
    with rm.Machine(1, "64M", window="1G", debug=1) as machine:
        p = machine.spawn()
        machine.swapon(tmp_path / "swap", size=64 << 20)
        idle = p.mmap(None, 20 << 20, RW, PRIVATE)
        p.fill(idle, 20 << 20, 1)
        held = []
        with pytest.raises(rm.OutOfMemory):
            while True:
                held.append(machine.alloc_pages(rm.GFP.KERNEL | rm.GFP.DMA | rm.GFP.NOWARN, 0))
        assert p.swap < 100, "pages of another zone went, which serve nobody here"
        a = p.mmap(None, 60 << 20, RW, PRIVATE)
        written = 0
        while machine.kswapd(0).pages_reclaimed == 0:
            p.write(a + written, b"x")
            written += P
        deadline = time.monotonic() + 2
        while time.monotonic() < deadline:
            assert p.swap < 2000, "all is being swapped out"
            time.sleep(0.05)
        for page in held:
            machine.free_pages(page, 0)


@pytest.mark.parametrize("raw", [False, True])
def test_three_times_the_memory(machine, p, raw):
    """Random reads and writes; each byte is right, and the memory never more than there is."""
    n = (48 << 20) // P
    a = p.mmap(None, n * P, RW, PRIVATE)
    rng = np.random.default_rng(5)
    expected = np.zeros(n, dtype=np.uint64)
    x = np.frombuffer(p.view(a, n * P), dtype=np.uint64)[:: P // 8]
    for turn in range(1, 6):
        for i in rng.integers(0, n, n // 2):
            expected[i] = turn << 32 | int(i)
            if raw:
                assert x[i] <= expected[i]
                x[i] = expected[i]
            else:
                p.write(a + int(i) * P, int(expected[i]).to_bytes(8, "little"))
    for i in range(n):
        found = x[i] if raw else int.from_bytes(p.read(a + i * P, 8), "little")
        assert found == expected[i], i
    assert machine.vmstat["pswpout"] > n
    machine.check()


@pytest.mark.conformance("SW-11")
def test_clean_file_pages_are_dropped_and_dirty_ones_written(machine, p, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(os.urandom(48 << 20))
    wanted = path.read_bytes()
    a = p.mmap(None, 48 << 20, RW, rm.MAP_SHARED, path)
    assert p.read(a, 48 << 20) == wanted
    for i in range(0, 48 << 20, 16 * P):
        p.write(a + i, b"changed")
    assert p.read(a + (47 << 20), 1 << 20)[7:P] == wanted[47 << 20:][7:P]
    assert machine.vmstat["pgsteal_file"] > 0 and machine.vmstat["pswpout"] == 0
    p.munmap(a, 48 << 20)
    now = path.read_bytes()
    assert all(now[i:i + 7] == b"changed" for i in range(0, 48 << 20, 16 * P))


@pytest.mark.parametrize(("make", "number"), [
    (lambda path: path.write_bytes(b"x" * 100 * P), errno.EINVAL),
    (lambda path: None, errno.ENOENT),
    (lambda path: path.mkdir(), errno.EISDIR),
])
def test_what_is_no_swap_file(machine, p, tmp_path, make, number):
    make(tmp_path / "bad")
    with pytest.raises(OSError) as caught:
        machine.swapon(tmp_path / "bad")
    assert caught.value.errno == number


def test_refused_swap_files(machine, p, tmp_path):
    from realmem import swapfile

    for kwargs in ({"size": 9 * P}, {"size": -1}, {"priority": 32768}, {"priority": -2}):
        with pytest.raises(OSError) as caught:
            machine.swapon(tmp_path / "new", **kwargs)
        assert caught.value.errno == errno.EINVAL and not (tmp_path / "new").exists()
    with pytest.raises(OSError) as caught:
        machine.swapon(tmp_path / "swap")
    assert caught.value.errno == errno.EBUSY
    holes = tmp_path / "holes"
    swapfile.make(holes, 100 * P)
    with holes.open("r+b") as file:
        header = file.read(P)
        file.truncate(0)
        file.truncate(100 * P)
        file.seek(0)
        file.write(header)
    with pytest.raises(OSError, match="holes"):
        machine.swapon(holes)


def test_a_file_is_one_area_by_any_name(machine, p, tmp_path):
    """Of any machine: neither its pages nor its first page are written over."""
    a = pages(p, 20)
    p.madvise(a, 20 * P, MADV_PAGEOUT)
    (tmp_path / "other").hardlink_to(tmp_path / "swap")
    with rm.Machine(1, "16M", window="1G") as second:
        for who, name in ((machine, "other"), (second, "swap"), (second, "other")):
            for size in (None, 1 << 20):
                with pytest.raises(OSError) as caught:
                    who.swapon(tmp_path / name, size=size)
                assert caught.value.errno == errno.EBUSY
    assert p.read(a, 20 * P)[::P] == bytes(range(1, 21))


def test_swapoff_by_two_at_once(machine, p, tmp_path):
    a = pages(p, 200)
    for _ in range(5):
        p.madvise(a, 200 * P, MADV_PAGEOUT)
        ends = []

        def off(ends=ends):
            try:
                ends.append(machine.swapoff(tmp_path / "swap"))
            except OSError as error:
                ends.append(error.errno)

        threads = [threading.Thread(target=off) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(ends, key=str) == [errno.EINVAL, None]
        assert machine._paging.mmu.swap_counts == (0, 0, 0)
        machine.swapon(tmp_path / "swap", size=64 << 20)
    assert p.read(a, 200 * P)[::P] == bytes(i & 255 for i in range(1, 201))


def test_a_long_trace_goes_on_while_it_gets_on(machine, p):
    """It reclaims as often as it takes, many times in one turn of the lock."""
    n = (48 << 20) // P
    a = p.mmap(None, n * P, RW, PRIVATE)
    where = np.random.default_rng(3).permutation(n).astype(np.uint64) * P + np.uint64(a)
    p.access(where, True)
    p.access(where[::-1], False)
    assert abs(p.rss + p.swap - n) < 64         # kswapd may go on between the two


def test_a_swap_file_that_lost_its_pages(machine, p, tmp_path):
    """What cannot be read is BusError; what is in memory, and what is written later, is kept."""
    a = pages(p, 4)
    p.madvise(a, 2 * P, MADV_PAGEOUT)
    os.truncate(tmp_path / "swap", P)
    with pytest.raises(BusError) as caught:
        p.read(a, P)
    assert caught.value.address == a
    with pytest.raises(BusError), p.guard():
        bytes(p.view(a, 1))
    assert p.read(a + 2 * P, P) == bytes([3]) * P
    p.madvise(a, P, MADV_DONTNEED)
    assert p.read(a, P) == bytes(P)
    machine.check()


@pytest.mark.conformance("GF-05")
def test_retry_mayfail(machine, p):
    """It goes on while reclaim gets on, gives up after 16 rounds without, and kills nobody."""
    gfp = rm.GFP.KERNEL | rm.GFP.RETRY_MAYFAIL | rm.GFP.NOWARN
    a = p.mmap(None, 8 << 20, RW, PRIVATE)
    p.fill(a, 8 << 20, 3)
    held = []
    before = 0
    with pytest.raises(rm.OutOfMemory):
        while True:
            before = stalls(machine)
            held.append(machine.alloc_pages(gfp, 0))
    # Rounds that got on, if only because kswapd did, are not counted.
    assert stalls(machine) - before >= 17
    assert p.rss < 200 and p.swap > 1500        # all that could be taken was
    assert machine.vmstat["oom_kill"] == 0
    for page in held:
        machine.free_pages(page, 0)
    assert p.read(a, 8 << 20).count(3) == 8 << 20


def stalls(machine):
    return sum(n for name, n in machine.vmstat.snapshot().items() if name.startswith("allocstall"))
