"""A plain model of processes that are relatives: which page of each holds which byte."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field

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

RW = PROT_READ | PROT_WRITE
RIGHTS = (PROT_NONE, PROT_READ, RW, RW)


@dataclass
class Page:
    """What one page of one process is: its rights, and the cell that its byte is in."""

    cell: list[int]
    prot: int
    shared: bool


@dataclass
class Relatives:
    """
    Processes on a machine, and what they should hold.

    :ivar pages: pages of the arena.
    :ivar most: how many processes there may be.
    """

    machine: rm.Machine
    pages: int
    most: int = 5
    align: int = PAGE_SIZE
    live: list[rm.Process] = field(default_factory=list)
    held: dict[int, dict[int, Page]] = field(default_factory=dict)
    arena: int = 0

    def start(self) -> None:
        first = self.machine.spawn()
        high = first.mm.low + (512 << 20)
        self.arena = high & -self.align
        self.live = [first]
        self.held = {first.pid: {}}

    def do(self, what: str, who: int, at: int, n: int, value: int) -> None:
        """Make one call on both sides; numbers are taken modulo what there is."""
        process = self.live[who % len(self.live)]
        first = at % self.pages
        span = range(first, min(first + 1 + n, self.pages))
        start, length = self.arena + first * PAGE_SIZE, len(span) * PAGE_SIZE
        getattr(self, "do_" + what)(process, self.held[process.pid], span, start, length, value)

    def do_private(self, p, mine, span, start, length, value) -> None:
        p.mmap(start, length, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED)
        mine.update({i: Page([0], RW, False) for i in span})

    def do_shared(self, p, mine, span, start, length, value) -> None:
        p.mmap(start, length, RW, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED)
        mine.update({i: Page([0], RW, True) for i in span})

    def do_munmap(self, p, mine, span, start, length, value) -> None:
        p.munmap(start, length)
        for i in span:
            mine.pop(i, None)

    def do_mprotect(self, p, mine, span, start, length, value) -> None:
        prot = RIGHTS[value % len(RIGHTS)]
        gap = next((i for i in span if i not in mine), span.stop)
        with contextlib.suppress(OSError):          # a hole ends it
            p.mprotect(start, length, prot)
            assert gap == span.stop
        for i in range(span.start, gap):
            mine[i].prot = prot

    def do_store(self, p, mine, span, start, length, value) -> None:
        for i in span[:3]:
            if i in mine and mine[i].prot & PROT_WRITE:
                at = self.arena + i * PAGE_SIZE
                if value & 1:
                    p.view(at, 1)[0] = value
                else:
                    p.write(at, bytes([value]))
                mine[i].cell[0] = value

    def do_load(self, p, mine, span, start, length, value) -> None:
        for i in span[:3]:
            if i in mine and mine[i].prot & PROT_READ:
                at = self.arena + i * PAGE_SIZE
                got = p.view(at, 1)[0] if value & 1 else p.read(at, 1)[0]
                assert got == mine[i].cell[0]

    def do_flush(self, p, mine, span, start, length, value) -> None:
        p.mm.core.flush(start, start + length)

    def do_fork(self, p, mine, span, start, length, value) -> None:
        if len(self.live) == self.most:
            return
        child = p.fork()
        self.live.append(child)
        self.held[child.pid] = {
            i: Page(page.cell if page.shared else list(page.cell), page.prot, page.shared)
            for i, page in mine.items()
        }

    def do_exit(self, p, mine, span, start, length, value) -> None:
        if len(self.live) > 1:
            self.live.remove(p)
            del self.held[p.pid]
            p.exit()

    def do_dontneed(self, p, mine, span, start, length, value) -> None:
        if any(i not in mine for i in span):
            return
        p.madvise(start, length, rm.MADV_DONTNEED)
        for i in span:
            if not mine[i].shared:
                mine[i].cell = [0]

    def do_remove(self, p, mine, span, start, length, value) -> None:
        if not all(
                i in mine and mine[i].shared and mine[i].prot & PROT_WRITE for i in span):
            return
        p.madvise(start, length, rm.MADV_REMOVE)
        for i in span:
            mine[i].cell[0] = 0

    def do_mremap(self, p, mine, span, start, length, value) -> None:
        # Within one VMA, to somewhere in the arena that does not overlap.
        if any(i not in mine for i in span):
            return
        vma = p.find_vma(start)
        to = range(value * 7 % self.pages, value * 7 % self.pages + len(span))
        if (vma.end < start + length or to.stop > self.pages
                or not (to.stop <= span.start or span.stop <= to.start)):
            return
        p.mremap(start, length, length, rm.MREMAP_MAYMOVE | rm.MREMAP_FIXED,
                 self.arena + to.start * PAGE_SIZE)
        for i, target in zip(span, to, strict=True):
            mine[target] = mine.pop(i)

    # ---- what must hold ----

    def walk(self) -> dict[int, list[tuple[int, int]]]:
        """Give (pid, address) of every page that page tables map, by frame; plainly."""
        found: dict[int, list[tuple[int, int]]] = {}
        for p in self.live:
            for vma in p.vmas:
                for at in range(vma.start, vma.end, PAGE_SIZE):
                    step = p.walk(at)[-1]
                    flags = step.decoded["flags"]
                    if {"present", "protnone"} & flags and "special" not in flags:
                        pfn = step.decoded["pfn"]
                        if step.level == "pmd":
                            pfn += at // PAGE_SIZE % 512
                        found.setdefault(pfn, []).append((p.pid, at))
        return found

    def compare(self) -> None:
        """Every byte, every frame's mappings, and what smaps counts of them."""
        for p in self.live:
            mine = self.held[p.pid]
            rights = {(at - self.arena) // PAGE_SIZE: vma.prot for vma in p.vmas
                      for at in range(vma.start, vma.end, PAGE_SIZE)}
            assert rights == {i: page.prot for i, page in mine.items()}
        frames = self.walk()
        for pfn, places in frames.items():
            page = self.machine.pfn_to_page(pfn)
            assert page.mappings == sorted(places)
            assert page.mapcount == len(places)
        for p in self.live:
            own = [places for places in frames.values() for pid, _ in places if pid == p.pid]
            assert p.rss == len(own)
            stats = [p.mm.core.smaps(vma.start, vma.end) for vma in p.vmas]
            assert sum(one.rss for one in stats) == len(own)
            private = sum(len(places) == 1 for places in own)
            assert sum(one.private_clean + one.private_dirty for one in stats) == private
            pss = sum(PAGE_SIZE / len(places) for places in own)
            assert abs(sum(one.pss for one in stats) - pss) <= len(own) + 1
        self.machine.check()
        for p in self.live:
            for i, page in self.held[p.pid].items():
                if page.prot & PROT_READ:
                    assert p.read(self.arena + i * PAGE_SIZE, 1)[0] == page.cell[0], (p.pid, i)
                else:
                    with contextlib.suppress(rm.SegmentationFault):
                        p.read(self.arena + i * PAGE_SIZE, 1)
                        raise AssertionError("it may be read")

    def end(self) -> None:
        for p in self.live:
            p.exit()
        self.machine.check()
