"""
Copy-on-write by donation, and by 64 KiB: only frame numbers and host calls tell.

Random relatives store to, read, lock, pin and flush the same pages, in two machines.  In the
second each store finds its window flushed, so that there is nothing to donate for; all that Linux
would show stays equal, and in both each process reads what it, and nobody else, stored.
"""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from backends import BACKENDS, needs_backend
from hypothesis import example, given, settings
from hypothesis import strategies as st

import realmem as rm
from realmem import MADV_DONTNEED, MAP_ANONYMOUS, MAP_FIXED, MAP_PRIVATE, PAGE_SIZE
from realmem.errors import SegmentationFault

RW = rm.PROT_READ | rm.PROT_WRITE
ANON = MAP_PRIVATE | MAP_ANONYMOUS
P = PAGE_SIZE
BASE = (1 << 32) + 5 * P                # blocks of 64 KiB are not the VMA's
PAGES = 44
MOST = 5                                # processes at a time

who = st.integers(0, MOST - 1)
page = st.integers(0, PAGES - 1)
steps = st.one_of(
    st.tuples(st.sampled_from(["raw store", "soft store"]), who, page),
    st.tuples(st.sampled_from(["raw store", "soft store"]), who, page),
    st.tuples(st.just("store all"), who, st.integers(1, 5)),
    st.tuples(st.sampled_from(["raw load", "load all"]), who, page),
    st.tuples(st.sampled_from(["fork", "fork", "exit", "flush"]), who, page),
    st.tuples(st.sampled_from(["protect", "forbidden", "lock", "unlock"]), who, page),
    st.tuples(st.sampled_from(["forget", "move", "pin"]), who, page),
)


class Family:
    """Relatives with one region, and what each should read there."""

    def __init__(self, donates, block, faults):
        self.machine = rm.Machine(nodes=1, memory="24M", window="1G", faults=faults)
        self.donates = donates
        first = self.machine.spawn()
        first.mmap(BASE, PAGES * P, RW, ANON | MAP_FIXED)
        if block:
            self.machine.thp.set_order(4, "always")
        self.members = [first]
        self.values = {first.pid: np.zeros(PAGES, dtype=np.uint64)}
        self.stores = 0

    def words(self, process):
        """Give the first word of each page, through the window."""
        return np.frombuffer(process.view(BASE, PAGES * P), dtype=np.uint64)[::512]

    def step(self, what, who, n):
        p = self.members[who % len(self.members)]
        if what in ("raw store", "soft store"):
            self.store(p, n, what == "raw store")
        elif what == "store all":
            for i in range(0, PAGES, n):
                self.store(p, i, raw=True)
        elif what == "raw load":
            assert int(self.words(p)[n]) == self.values[p.pid][n]
        elif what == "load all":
            assert (self.words(p) == self.values[p.pid]).all()
        elif what == "fork" and len(self.members) < MOST:
            child = p.fork()
            self.members.append(child)
            self.values[child.pid] = self.values[p.pid].copy()
        elif what == "exit" and len(self.members) > 1:
            self.members.remove(p)
            del self.values[p.pid]
            p.exit()
        else:
            self.change(what, p, n)

    def store(self, p, i, raw):
        self.stores += 1
        if not self.donates:
            p.mm.core.flush(BASE, BASE + PAGES * P)
        if raw:
            self.words(p)[i] = self.stores
        else:
            p.write(BASE + i * P, self.stores.to_bytes(8, "little"))
        self.values[p.pid][i] = self.stores

    def change(self, what, p, n):
        at = BASE + n * P
        length = min(7, PAGES - n) * P
        if what == "flush":
            p.mm.core.flush(at, at + length)
        elif what == "protect":
            p.mprotect(at, length, rm.PROT_READ)
            p.mprotect(at, length, RW)
        elif what == "forbidden":           # leaves scratch pages, which show the frames
            p.mprotect(at, length, rm.PROT_READ)
            with contextlib.suppress(SegmentationFault), p.guard():
                self.words(p)[n] = 7
            p.mprotect(at, length, RW)
        elif what == "lock":
            p.mlock(at, length)
        elif what == "unlock":
            p.munlock(at, length)
        elif what == "forget":
            with contextlib.suppress(OSError):      # EINVAL at the first that is locked
                for i in range(n, n + length // P):
                    p.madvise(BASE + i * P, P, MADV_DONTNEED)
                    self.values[p.pid][i] = 0
        elif what == "move":
            p.mremap(at, length, length, rm.MREMAP_MAYMOVE | rm.MREMAP_FIXED, 1 << 33)
            p.mremap(1 << 33, length, length, rm.MREMAP_MAYMOVE | rm.MREMAP_FIXED, at)
        elif what == "pin":
            with p.pin(at, length) as view:
                assert bytes(view[:8]) == int(self.values[p.pid][n]).to_bytes(8, "little")
                self.store(p, n, raw=False)
                assert bytes(view[:8]) == self.stores.to_bytes(8, "little")

    def shown(self):
        """What Linux would show."""
        self.machine.drain_all_pages()
        vmstat = self.machine.vmstat
        names = ("nr_free_pages", "nr_anon_pages", "nr_page_table_pages", "nr_mlock", "pgfault",
                 "pgreuse", "pgfree", "numa_hit", "numa_local")
        return {name: vmstat[name] for name in names}, [
            (p.rss, p.min_flt, p.smaps()) for p in self.members
        ]

    def frames(self):
        """Which processes share which pages."""
        found = []
        for i in range(PAGES):
            pfns = [p.walk(BASE + i * P)[-1].decoded.get("pfn") for p in self.members]
            found.append([pfns.index(pfn) for pfn in pfns])
        return found

    def close(self):
        for p in self.members:
            assert (self.words(p) == self.values[p.pid]).all()
            p.exit()
        self.machine.check()
        self.machine.close()


@pytest.mark.parametrize("faults", BACKENDS)
@settings(max_examples=30)
@example([("store all", 0, 1), ("fork", 0, 0), ("store all", 0, 1), ("store all", 1, 1)], True)
@example([("store all", 0, 1), ("fork", 0, 0), ("fork", 0, 0), ("exit", 2, 0),
          ("raw store", 0, 20), ("load all", 1, 0), ("raw store", 0, 21)], False)
@example([("store all", 0, 1), ("fork", 0, 0), ("forbidden", 1, 3), ("store all", 0, 1),
          ("load all", 1, 0), ("load all", 0, 0)], True)
@example([("store all", 0, 1), ("lock", 0, 11), ("fork", 0, 0), ("lock", 1, 14),
          ("store all", 0, 1), ("exit", 0, 0), ("load all", 0, 0)], True)
@given(st.lists(steps, min_size=1, max_size=16), st.booleans())
def test_all_that_linux_shows_is_as_without_donations(faults, sequence, block):
    needs_backend(faults)
    ours, theirs = Family(True, block, faults), Family(False, block, faults)
    try:
        for step in sequence:
            ours.step(*step)
            theirs.step(*step)
            assert ours.shown() == theirs.shown(), step
            assert ours.frames() == theirs.frames(), step
            ours.machine.check()
            theirs.machine.check()
    finally:
        ours.close()
        theirs.close()


@pytest.fixture
def machine():
    with rm.Machine(nodes=1, memory="32M", window="1G", faults="sigsegv") as machine:
        yield machine
        machine.check()


def pfns(process, at, n):
    return [process.walk(at + i * P)[-1].decoded["pfn"] for i in range(n)]


def mapped(machine, n, at=1 << 32):
    """Give a process with n pages that its window has mapped for writing."""
    p = machine.spawn()
    p.mmap(at, n * P, RW, ANON | MAP_FIXED)
    words = np.frombuffer(p.view(at, n * P), dtype=np.uint64)[::512]
    words[:] = np.arange(n)
    return p, at, words


def changes(machine, what, before):
    after = machine.hoststat
    return {name: after[name] - before[name] for name in what}


WHY = ["own page", "sole owner", "zero page", "clean", "start", "end", "guard", "memory"]
COUNTED = ("donation", "map_fill", "map_flush")


def test_the_writer_keeps_its_frames_and_the_other_gets_copies(machine):
    p, at, words = mapped(machine, 16)
    frames = pfns(p, at, 16)
    child = p.fork()
    before = machine.hoststat
    words[:] = 100
    assert changes(machine, COUNTED, before) == {"donation": 16, "map_fill": 0, "map_flush": 0}
    assert pfns(p, at, 16) == frames
    theirs = pfns(child, at, 16)
    assert not set(theirs) & set(frames)
    for i, pfn in enumerate(theirs):
        page = machine.pfn_to_page(pfn)
        assert page.mappings == [(child.pid, at + i * P)]
        assert (page.mapcount, page.refcount) == (1, 1)
        assert int.from_bytes(child.read(at + i * P, 8), "little") == i
    # Whose frame it is now, reuses it; whoever had it mapped before does not see that.
    reused = machine.vmstat["pgreuse"]
    child.write(at, b"child")
    assert machine.vmstat["pgreuse"] == reused + 1
    assert pfns(child, at, 1) == theirs[:1]
    assert words[0] == 100


def test_a_software_store_leaves_what_the_window_has(machine):
    p, at, words = mapped(machine, 8)
    p.fork()
    before = machine.hoststat
    p.write(at + 3 * P, b"soft")
    assert changes(machine, COUNTED, before) == {"donation": 1, "map_fill": 0, "map_flush": 0}
    assert bytes(words[3:4])[:4] == b"soft"


def test_no_donation_to_who_has_the_page_mapped(machine):
    p, at, words = mapped(machine, 8)
    child = p.fork()
    theirs = np.frombuffer(child.view(at, 8 * P), dtype=np.uint64)[::512]
    assert theirs[2] == 2
    frame = pfns(p, at + 2 * P, 1)
    before = machine.hoststat["donation"]
    words[2] = 50
    assert machine.hoststat["donation"] == before
    assert pfns(p, at + 2 * P, 1) != frame == pfns(child, at + 2 * P, 1)
    assert theirs[2] == 2


def test_no_donation_to_who_shows_the_page_on_a_scratch_page(machine):
    p, at, words = mapped(machine, 8)
    child = p.fork()
    child.mprotect(at, 8 * P, rm.PROT_READ)
    theirs = np.frombuffer(child.view(at, 8 * P), dtype=np.uint8)
    with pytest.raises(SegmentationFault), child.guard():
        theirs[2 * P + 100] = 1
        before = machine.hoststat["donation"]
        words[2] = 50
        assert machine.hoststat["donation"] == before
        assert theirs[2 * P] == 2


def test_no_donation_among_three(machine):
    p, at, words = mapped(machine, 8)
    first, second = p.fork(), p.fork()
    before = machine.hoststat["donation"]
    words[0] = 9
    assert machine.hoststat["donation"] == before
    second.exit()
    words[1] = 9
    assert machine.hoststat["donation"] == before + 1
    assert [int.from_bytes(first.read(at + i * P, 8), "little") for i in (0, 1)] == [0, 1]


def test_what_is_pinned_stays_with_who_pinned_it(machine):
    p, at, words = mapped(machine, 8)
    child = p.fork()
    with child.pin(at, 8 * P) as view:
        words[:] = 77
        assert bytes(view[3 * P : 3 * P + 8]) == (3).to_bytes(8, "little")
        child.write(at + 3 * P, b"mine")
        assert bytes(view[3 * P : 3 * P + 4]) == b"mine"
    assert (words == 77).all()


def test_a_huge_mapping_of_the_other_stays_huge(machine):
    machine.thp.set_order(9, "always")
    p = machine.spawn()
    at = 1 << 32
    p.mmap(at, 512 * P, RW, ANON | MAP_FIXED)
    view = p.view(at, 512 * P)
    view[0] = 1
    child = p.fork()
    before = machine.hoststat["donation"]
    view[5 * P] = 2
    assert machine.hoststat["donation"] == before
    assert "AnonHugePages:      2048 kB" in child.smaps()
    assert child.read(at + 5 * P, 1) == b"\0"


@pytest.mark.parametrize("cow", ["policy", "local", "source"])
def test_a_copy_for_another_node_is_not_given_away(cow):
    with rm.Machine(nodes=2, memory="32M", window="1G") as machine:
        machine.cow_placement = cow
        p = machine.spawn(node=0)
        at = p.mmap(None, 8 * P, RW, ANON)
        p.write(at, bytes(range(8)) * (8 * P // 8))
        assert bytes(p.view(at, 8 * P)) == bytes(range(8)) * (8 * P // 8)
        frames = pfns(p, at, 8)
        child = p.fork()
        p.run_on(node=1)
        before = machine.hoststat["donation"]
        p.write(at, b"on one")
        copied = machine.pfn_to_page(pfns(p, at, 1)[0])
        # The writer's page is where Linux would have put it, and the other's where it was.
        assert copied.node == (0 if cow == "source" else 1)
        assert machine.pfn_to_page(pfns(child, at, 1)[0]).node == 0
        assert machine.hoststat["donation"] == before + (cow == "source")
        assert (pfns(p, at, 1) == frames[:1]) == (cow == "source")
        machine.check()


class TestBlocks:
    """Stores to memory that may have folios of 64 KiB."""

    @pytest.fixture
    def machine(self, machine):
        machine.thp.set_order(4, "madvise")
        return machine

    def forked(self, machine, n=48, advise=True):
        p = machine.spawn()
        at = 1 << 32
        p.mmap(at, n * P, RW, ANON | MAP_FIXED)
        if advise:
            p.madvise(at, n * P, rm.MADV_HUGEPAGE)
        p.write(at, bytes(range(256)) * (n * P // 256))
        return p, at, p.fork()

    @pytest.mark.parametrize("raw", [False, True])
    @pytest.mark.parametrize("writer_is_mapped", [False, True])
    def test_a_store_copies_sixteen_pages_in_one_fault(self, machine, raw, writer_is_mapped):
        p, at, child = self.forked(machine)
        view = p.view(at, 48 * P)
        if writer_is_mapped:
            assert view[::P] == bytes(48)
        old = pfns(p, at, 48)
        faults, before = machine.vmstat["pgfault"], machine.hoststat
        if raw:
            view[20 * P] = 9
        else:
            p.write(at + 20 * P, b"\x09")
        assert machine.vmstat["pgfault"] == faults + 1
        calls = changes(machine, ("map_fill", "mprotect", "map_flush", "donation"), before)
        assert calls == {
            "donation": 16 * writer_is_mapped,
            "map_fill": int(raw and not writer_is_mapped),
            "mprotect": int(raw and writer_is_mapped),
            "map_flush": 0,
        }
        ours, theirs = pfns(p, at, 48), pfns(child, at, 48)
        assert [a == b for a, b in zip(ours, theirs, strict=True)] == [
            not 16 <= i < 32 for i in range(48)
        ]
        assert (ours if writer_is_mapped else theirs) == old
        assert child.read(at, 48 * P) == bytes(range(256)) * (48 * P // 256)
        assert (p.rss, child.rss) == (48, 48)
        # All sixteen are the process's own now.
        view[16 * P : 32 * P] = bytes(16 * P)
        assert machine.vmstat["pgfault"] == faults + 1
        assert p.read(at + 16 * P, 16 * P) == bytes(16 * P)

    @pytest.mark.parametrize("larger", [False, True])
    def test_who_did_not_ask_gets_a_page(self, machine, larger):
        if larger:                          # folios, but not of 64 KiB
            machine.thp.set_order(4, "never")
            machine.thp.set_order(5, "always")
        p, at, child = self.forked(machine, advise=False)
        p.write(at + 20 * P, b"\x09")
        same = [a == b for a, b in zip(pfns(p, at, 48), pfns(child, at, 48), strict=True)]
        assert same.count(False) == 1

    @pytest.mark.parametrize("why", WHY)
    def test_a_block_that_is_not_alike_goes_by_pages(self, machine, why):
        p, at, child = self.forked(machine)
        other = 1                           # pages that differ, with the one stored to
        if why == "own page":
            p.madvise(at + 17 * P, P, MADV_DONTNEED)
            p.write(at + 17 * P, b"x")
            other = 2
        elif why == "sole owner":
            child.madvise(at, 48 * P, rm.MADV_NOHUGEPAGE)
            child.write(at + 17 * P, b"x")      # ours is read-only still, but nobody else's
            other = 2
        elif why == "zero page":
            child.exit()
            p.madvise(at + 17 * P, P, MADV_DONTNEED)
            p.read(at + 17 * P, 1)
            child = p.fork()
        elif why == "clean":
            child.exit()
            machine.procfs[f"/proc/{p.pid}/clear_refs"] = "4"
            child = p.fork()
        elif why == "end":
            p.mprotect(at + 31 * P, P, rm.PROT_READ)
        elif why == "start":
            p.mprotect(at + 16 * P, P, rm.PROT_READ)
        elif why == "guard":
            p.madvise(at + 30 * P, P, rm.MADV_GUARD_INSTALL)
        frames = pfns(p, at + 20 * P, 4)
        injection = (
            machine.inject("page_alloc", nth=1)
            if why == "memory" else contextlib.nullcontext()
        )
        with injection:
            p.write(at + 20 * P, b"\x09")
        assert pfns(p, at + 20 * P, 4)[1:] == frames[1:]
        assert pfns(p, at + 20 * P, 1) != frames[:1]
        same = [
            p.walk(at + i * P)[-1].decoded.get("pfn") == child.walk(at + i * P)[-1].decoded["pfn"]
            for i in range(16, 30)
        ]
        assert same.count(False) == other

    def test_locked_pages_stay_counted(self, machine):
        p, at, child = self.forked(machine)
        p.mlock(at, 48 * P)                 # parts each page from the child's
        child.exit()
        child = p.fork()
        assert machine.vmstat["nr_mlock"] == 48
        p.write(at + 20 * P, b"\x09")
        assert machine.vmstat["nr_mlock"] == 48
        child.exit()
        p.munlock(at, 48 * P)
        assert machine.vmstat["nr_mlock"] == 0

    def test_the_window_does_not_keep_what_the_software_mmu_replaced(self, machine):
        p, at, child = self.forked(machine)
        ours, theirs = p.view(at, 48 * P), child.view(at, 48 * P)
        assert ours[::P] == theirs[::P] == bytes(48)    # both have it mapped: nothing is donated
        donated = machine.hoststat["donation"]
        p.write(at + 20 * P, b"\x09")
        assert pfns(p, at + 16 * P, 1) != pfns(child, at + 16 * P, 1)
        assert machine.hoststat["donation"] == donated
        assert ours[20 * P] == 9 and theirs[20 * P] == 0


def test_a_donation_takes_locks_along(machine):
    p = machine.spawn()
    at = p.mmap(BASE, 4 * P, RW, ANON | MAP_FIXED)
    view = p.view(at, 4 * P)
    view[::P] = b"abcd"
    child = p.fork()
    child.mlock2(at, 4 * P, rm.MLOCK_ONFAULT)           # leaves the pages shared
    old = pfns(p, at, 4)
    assert machine.vmstat["nr_mlock"] == 4
    view[P] = 0
    assert machine.hoststat["donation"] == 1
    assert pfns(p, at, 4) == old
    machine.check()
    assert machine.vmstat["nr_mlock"] == 4
    child.munlock(at, 4 * P)
    assert machine.vmstat["nr_mlock"] == 0
    machine.check()
    assert child.read(at + P, 1) == b"b"
