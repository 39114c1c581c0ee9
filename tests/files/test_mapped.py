"""Mappings of files, line by line of the catalogue: what is read, what is written, what is not."""

from __future__ import annotations

import errno
import os

import numpy as np
import pytest

import realmem as rm
from realmem import (
    MAP_PRIVATE,
    MAP_SHARED,
    MS_ASYNC,
    MS_SYNC,
    PAGE_SIZE,
    PROT_READ,
    PROT_WRITE,
)
from realmem.errors import BusError, SegmentationFault

RW, P = PROT_READ | PROT_WRITE, PAGE_SIZE


def at(path, page):
    """Give the first byte of a page, as the host's kernel reads it."""
    return path.read_bytes()[page * P]


@pytest.mark.conformance("MM-11")
def test_private_stores_stay_private(p, path):
    """Of a file opened for reading only, too; raw stores as well as software's."""
    before = path.read_bytes()
    with path.open("rb") as file:
        a = p.mmap(None, 4 * P, RW, MAP_PRIVATE, file)
    x = np.frombuffer(p.view(a, 4 * P), dtype=np.uint8)
    assert x[::P].tolist() == [1, 2, 3, 4] and x[3 * P + 2048:].max() == 0
    x[0] = 99
    p.write(a + P, b"software")
    p.write(a + 3 * P + 3000, b"past the end")
    assert p.read(a, 2) == b"\x63\1" and p.read(a + P, 9) == b"software\2"
    p.munmap(a, 4 * P)
    assert path.read_bytes() == before


def test_both_ways_in_read_the_file(p, path):
    a = p.mmap(None, 4 * P, PROT_READ, MAP_SHARED, path)
    assert p.read(a, 4 * P) == path.read_bytes() + bytes(2048)
    assert bytes(p.view(a, 4 * P)) == path.read_bytes() + bytes(2048)
    with pytest.raises(SegmentationFault):
        p.write(a, b"x")
    with pytest.raises(SegmentationFault), p.guard():
        p.view(a, P)[0] = 1
    with pytest.raises(OSError, match="Permission denied"):
        p.mprotect(a, P, RW)


@pytest.mark.conformance("MM-25")
def test_behind_the_end_is_bus_error(p, path):
    a = p.mmap(None, 2 * P, RW, MAP_SHARED, path, 8 * P)
    b = p.mmap(None, 8 * P, RW, MAP_PRIVATE, path)
    for where in (a, a + P, b + 4 * P, b + 7 * P):
        for touch in (p.read, lambda addr, n: p.write(addr, bytes(n))):
            with pytest.raises(BusError) as caught:
                touch(where, 1)
            assert caught.value.address == where
        with pytest.raises(BusError), p.guard():
            p.view(where, 1)[0]
    assert p.read(b + 3 * P, P)[-1] == 0
    with pytest.raises(BusError) as caught:
        p.read(b + 3 * P, 2 * P)
    assert caught.value.done == P


@pytest.mark.conformance("MM-35")
def test_populate_ends_at_the_end(p, path):
    a = p.mmap(None, 8 * P, PROT_READ, MAP_SHARED | rm.MAP_POPULATE, path)
    assert p.rss == 4
    assert p.mincore(a, 8 * P) == b"\1" * 4 + bytes(4)


@pytest.mark.conformance("MM-36")
def test_populate_takes_private_copies_at_once(p, path):
    a = p.mmap(None, P, RW, MAP_PRIVATE | rm.MAP_POPULATE, path)
    child = p.fork()
    b = child.mmap(None, P, RW, MAP_SHARED, path)
    child.write(b, b"\x77")
    assert child.read(b, 1) == b"\x77"
    assert p.read(a, 1) == child.read(a, 1) == b"\1"


@pytest.mark.conformance("MU-10")
def test_what_is_unmapped_is_written(p, path):
    """Without msync; private changes go."""
    a = p.mmap(None, 4 * P, RW, MAP_SHARED, path)
    b = p.mmap(None, 4 * P, RW, MAP_PRIVATE, path)
    p.write(b + P, b"\x99")
    p.view(a, 4 * P)[2 * P] = 0x55
    p.munmap(b, 4 * P)
    p.munmap(a, 4 * P)
    assert [at(path, i) for i in range(4)] == [1, 2, 0x55, 4]


def test_what_an_exit_leaves_is_written(p, path):
    a = p.mmap(None, 4 * P, RW, MAP_SHARED, path)
    child = p.fork()
    child.view(a, P)[0] = 0x41
    p.write(a + P, b"\x42")
    child.exit()
    p.exit()
    assert [at(path, i) for i in range(4)] == [0x41, 0x42, 3, 4]


@pytest.mark.conformance("MP-15", "MS-06")
def test_dirty_pages_over_mprotect(p, path):
    """Written back, write-protected and opened again: each store after it reaches the file."""
    a = p.mmap(None, 4 * P, RW, MAP_SHARED, path)
    x = p.view(a, 4 * P)
    for turn in range(1, 6):
        x[0] = turn
        assert dirty(p, a) == 1
        if turn % 2:
            p.msync(a, P, MS_SYNC)
            assert at(path, 0) == turn and dirty(p, a) == 0
        p.mprotect(a, P, PROT_READ)
        p.mprotect(a, P, RW)
        p.write(a, bytes([turn + 100]))
        p.msync(a, P, MS_SYNC)
        assert at(path, 0) == turn + 100


def dirty(p, addr):
    """Count dirty pages of a mapping, as smaps tells."""
    kb = {}
    for line in p.smaps().splitlines():
        name, _, value = line.partition(":")
        if name in ("Private_Dirty", "Shared_Dirty"):
            kb[name] = kb.get(name, 0) + int(value.split()[0])
    return sum(kb.values()) // 4


@pytest.mark.conformance("MS-07")
def test_msync_async_writes_nothing(p, path):
    a = p.mmap(None, P, RW, MAP_SHARED, path)
    p.write(a, b"\x31")
    p.msync(a, P, MS_ASYNC)
    assert at(path, 0) == 1
    p.msync(a, P, MS_SYNC)
    assert at(path, 0) == 0x31


@pytest.mark.conformance("MS-08", "MS-09")
def test_stores_past_the_end_stay_in_the_page(p, path):
    a = p.mmap(None, 4 * P, RW, MAP_SHARED, path)
    p.write(a + 3 * P + 2000, b"x" * 100)
    p.msync(a, 4 * P, MS_SYNC)
    assert path.stat().st_size == 3 * P + 2048
    assert path.read_bytes()[-48:] == b"x" * 48
    p.munmap(a, 4 * P)
    assert path.stat().st_size == 3 * P + 2048
    b = p.mmap(None, 4 * P, RW, MAP_SHARED, path)
    assert p.read(b + 3 * P + 2048, 2048) == bytes(2048)


@pytest.mark.conformance("MS-11")
@pytest.mark.parametrize("kind", [MAP_SHARED, MAP_PRIVATE])
def test_a_truncated_page_is_bus_error(p, path, kind):
    """Even where it was resident."""
    a = p.mmap(None, 4 * P, RW, kind, path)
    p.read(a, 4 * P)
    os.truncate(path, P)
    with pytest.raises(BusError):
        p.read(a + P, 1)
    with pytest.raises(BusError), p.guard():
        p.view(a + 2 * P, P)[0]
    assert p.read(a, 1) == b"\1"


@pytest.mark.conformance("MS-12", "MS-13")
@pytest.mark.parametrize("store", [False, True])
def test_truncated_down_and_up_reads_zeros(p, path, store):
    a = p.mmap(None, 4 * P, RW, MAP_SHARED, path)
    p.read(a, 4 * P)
    if store:
        p.write(a + P, b"\x44" * P)
    os.truncate(path, P + 100)
    assert p.read(a + P, P) == (b"\x44" if store else b"\2") * 100 + bytes(P - 100)
    os.truncate(path, 4 * P)
    assert p.read(a + P, 3 * P)[100:] == bytes(3 * P - 100)
    p.msync(a, 4 * P, MS_SYNC)
    assert path.read_bytes()[P + 100:] == bytes(3 * P - 100)


@pytest.mark.conformance("MS-14")
def test_private_copies_past_the_new_end_go(p, path):
    a = p.mmap(None, 4 * P, RW, MAP_PRIVATE, path)
    p.write(a, b"mine")
    p.write(a + 2 * P, b"mine")
    os.truncate(path, 0)
    for page in range(4):
        with pytest.raises(BusError):
            p.read(a + page * P, 1)
    assert p.rss == 0


@pytest.mark.conformance("MS-15")
def test_a_longer_file_shows(p, path):
    a = p.mmap(None, 8 * P, RW, MAP_SHARED, path)
    with pytest.raises(BusError):
        p.read(a + 5 * P, 1)
    p.write(a + 3 * P + 2040, b"12345678beyond")     # what lies behind the end is nobody's
    with path.open("ab") as file:
        file.write(b"\5" * (3 * P))
    assert p.read(a + 3 * P + 2040, 14) == b"12345678" + b"\5" * 6
    assert p.view(a + 5 * P, 1)[0] == 5
    p.msync(a, 8 * P, MS_SYNC)
    assert path.read_bytes()[3 * P + 2040:] == b"12345678" + b"\5" * (3 * P)


@pytest.mark.conformance("MS-16")
def test_writes_by_others_are_seen_by_the_next_call(p, path):
    """And stores by them once they are written back (where it differs from Linux: README)."""
    a = p.mmap(None, 4 * P, RW, MAP_SHARED, path)
    x = np.frombuffer(p.view(a, 4 * P), dtype=np.uint8)
    assert x[2 * P] == 3
    with path.open("r+b", buffering=0) as file:
        for turn in range(20):
            os.pwrite(file.fileno(), bytes([turn]) * 10, 2 * P)
            assert p.read(a + 2 * P, 11) == bytes([turn]) * 10 + b"\3"
            assert x[2 * P + 9] == turn
            x[0] = turn
            p.msync(a, P, MS_SYNC)
            assert os.pread(file.fileno(), 1, 0) == bytes([turn])


@pytest.mark.conformance("MS-17")
def test_private_pages_follow_the_file_until_written(p, path):
    a = p.mmap(None, 2 * P, RW, MAP_PRIVATE, path)
    assert p.read(a, 1) == b"\1"
    with path.open("r+b", buffering=0) as file:
        file.write(b"\x21")
        assert p.read(a, 1) == b"\x21"
        p.write(a + 1, b"\x99")
        os.pwrite(file.fileno(), b"\x22", 0)
    assert p.read(a, 2) == b"\x21\x99"


@pytest.mark.conformance("MS-19")
def test_faults_with_and_without_io(p, path):
    read = p._table.machine().vmstat["pgpgin"]
    major = p._table.machine().vmstat["pgmajfault"]
    a = p.mmap(None, 4 * P, PROT_READ, MAP_SHARED, path)
    p.read(a, 1)
    assert (p.maj_flt, p.min_flt) == (1, 0)
    assert p._table.machine().vmstat["pgpgin"] == read + 14         # KiB, all that is around it
    assert p._table.machine().vmstat["pgmajfault"] == major + 1
    b = p.mmap(None, 4 * P, PROT_READ, MAP_PRIVATE, path)
    p.read(b, 4 * P)
    assert p.maj_flt == 1 and p.min_flt >= 1


@pytest.mark.conformance("MR-18", "MR-35")
def test_remapping_keeps_offsets_and_copies(p, path):
    a = p.mmap(None, 2 * P, RW, MAP_PRIVATE, path, P)
    p.write(a, b"mine")
    b = p.mremap(a, 2 * P, 3 * P, rm.MREMAP_MAYMOVE)
    assert p.read(b, 5) == b"mine\2" and p.read(b + P, 1) == b"\3"
    assert p.read(b + 2 * P, 2049) == b"\4" * 2048 + b"\0"
    c = p.mmap(None, 3 * P, PROT_READ, MAP_PRIVATE, path)
    p.mremap(b, 3 * P, 3 * P, rm.MREMAP_MAYMOVE | rm.MREMAP_FIXED, c)
    p.mremap(c, 3 * P, 3 * P, rm.MREMAP_MAYMOVE | rm.MREMAP_FIXED, b)
    (vma,) = [v for v in p.vmas if v.start == b]
    assert (vma.offset, vma.file, vma.anon) == (P, str(path), False)
    assert [p.read(b + i * P, 1) for i in range(3)] == [b"m", b"\3", b"\4"]


@pytest.mark.conformance("FK-17")
def test_fork_copies_no_clean_file_pages(p, path):
    a = p.mmap(None, 4 * P, RW, MAP_PRIVATE, path)
    p.read(a, 4 * P)
    child = p.fork()
    assert child.rss == 0
    before = child.min_flt
    child.read(a, 1)
    assert child.min_flt == before + 1 and child.maj_flt == 0
    p.write(a, b"mine")
    second = p.fork()
    assert second.rss == 4              # beside a copy, the others come with it
    second.write(a, b"hers")
    second.write(a + P, b"hers")
    assert p.read(a, 4) == b"mine" and p.read(a + P, 1) == b"\2"
    assert child.read(a, 1) == b"\1"


@pytest.mark.conformance("MC-11")
def test_mincore_of_files_of_others(p, path, machine):
    other = machine.spawn(uid=1000)
    with path.open("rb") as file:
        a = other.mmap(None, 4 * P, PROT_READ, MAP_SHARED, file)
    assert other.mincore(a, 4 * P) == b"\1" * 4
    b = p.mmap(None, 4 * P, PROT_READ, MAP_SHARED, path)
    assert p.mincore(b, 4 * P) == bytes(4)
    p.read(b, 1)
    assert p.mincore(b, 4 * P) == b"\1" * 4


def test_advice(p, path):
    a = p.mmap(None, 4 * P, RW, MAP_SHARED, path)
    p.madvise(a, 4 * P, rm.MADV_WILLNEED)
    assert p.mincore(a, 4 * P) == b"\1" * 4 and p.rss == 0
    p.write(a, b"\x61")
    p.madvise(a, 4 * P, rm.MADV_DONTNEED)
    assert p.rss == 0 and p.read(a, 1) == b"\x61"
    with pytest.raises(OSError) as caught:
        p.madvise(a, P, rm.MADV_FREE)
    assert caught.value.errno == errno.EINVAL
    p.write(a + P, b"\x62")
    p.madvise(a + P, P, rm.MADV_REMOVE)
    assert p.read(a + P, P) == bytes(P) and at(path, 1) == 0
    p.msync(a, 4 * P, MS_SYNC)
    assert [at(path, i) for i in range(4)] == [0x61, 0, 3, 4]


def test_seen_from_outside(p, path, machine):
    a = p.mmap(None, 4 * P, RW, MAP_SHARED, path)
    p.mmap(None, P, RW, MAP_PRIVATE, path, P)
    status = path.stat()
    lines = [line for line in p.maps().splitlines() if line.endswith(str(path))]
    assert len(lines) == 2
    device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}"
    assert f"{device} {status.st_ino}" in lines[0]
    p.write(a, b"x")
    p.read(a, 4 * P)
    assert (p.rss, machine.vmstat["nr_file_pages"], machine.vmstat["nr_dirty"]) == (4, 4, 1)
    assert "RssFile:\t      16 kB" in p.status()
    assert [word >> 61 & 1 for word in p.pagemap(a, 4)] == [1] * 4
    (frame,) = {p.walk(a)[-1].decoded["pfn"]}
    page = machine.pfn_to_page(frame)
    assert {"file", "dirty", "uptodate"} <= page.flags and page.mappings == [(p.pid, a)]
    assert "Dirty:                 4 kB" in machine.procfs["/proc/meminfo"]


def test_machines_share_files(path):
    """What one wrote back the other finds by its next call."""
    with rm.Machine(1, "8M", window="1G") as one, rm.Machine(1, "8M", window="1G") as two:
        p, q = one.spawn(), two.spawn()
        a, b = p.mmap(None, P, RW, MAP_SHARED, path), q.mmap(None, P, RW, MAP_SHARED, path)
        assert p.read(a, 1) == q.read(b, 1) == b"\1"
        for turn in range(10):
            (p if turn % 2 else q).write(a if turn % 2 else b, bytes([turn]))
            (p if turn % 2 else q).msync(a if turn % 2 else b, P, MS_SYNC)
            assert p.read(a, 1) == q.read(b, 1) == bytes([turn])
