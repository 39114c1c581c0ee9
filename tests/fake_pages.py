"""The kernel side's answers to advice, as a model: what tests/fake_core.py has not."""

from __future__ import annotations

import errno
from contextlib import contextmanager

import pytest
from fake_core import LENGTH, LOW, FakeCore, FakeProcess, as_process

from realmem.advice import AdviceCalls
from realmem.layout import (
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_PRIVATE,
    MAP_SHARED,
    PAGE_SIZE,
    PROT_READ,
    PROT_WRITE,
)
from realmem.mm.address_space import MemoryMap
from realmem.mm.limits import CAPABILITIES
from realmem.mm.settings import VmSettings
from realmem.mm.tree import VmaTree
from realmem.mm.vma import VM_ACCESS_FLAGS, VM_WRITE

# What most calls of these tests are made of.
P = PAGE_SIZE
WORD = 1 << 64
RW = PROT_READ | PROT_WRITE
ANON = MAP_PRIVATE | MAP_ANONYMOUS
FIXED = ANON | MAP_FIXED
SHARED = MAP_SHARED | MAP_ANONYMOUS


class FakePages(FakeCore):
    """Pages and guard markers are sets of addresses; what was asked is in ``asked``."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.guards = set()
        self.asked = []

    def populate(self, start, end, write):
        vma = self.tree.at(start)
        assert vma is not None and vma.end >= end, "not of one VMA"
        # On x86 what may be written or executed may be read.
        assert vma.vm_flags_word & (VM_WRITE if write else VM_ACCESS_FLAGS)
        for page in range(start, end, PAGE_SIZE):
            if page in self.guards:
                return (1, page)
            if vma.object is not None and vma.pgoff + (page - vma.start) // PAGE_SIZE >= (
                vma.object.size
            ):
                return (5, page)
            self.fault(page, page + PAGE_SIZE, write)
        return (0, 0)

    def set_thp_disabled(self, disabled):
        self.asked.append(("thp_disabled", disabled))

    def zap(self, start, end):
        self.madvise(start, end, "dontneed")

    def madvise(self, start, end, what):
        vma = self.tree.at(start)
        assert start >= end or (vma is not None and vma.end >= end), "not of one VMA"
        self.asked.append((what, start, end))
        span = {page for page in range(start, end, PAGE_SIZE)}
        if what in ("dontneed", "guard_install"):
            if vma.object is None or what == "guard_install":
                self.pages -= span
        if what == "guard_install":
            self.guards |= span
            self._anon_vma_prepare(vma)
        elif what == "guard_remove":
            self.guards -= span

    def _anon_vma_prepare(self, vma):
        if not vma.private_anon:
            return
        for i, (one, anon, forked) in enumerate(self.vmas):
            if one.start == vma.start and not anon:
                self.vmas[i] = (one, self._reusable(i) or next(self.mmu.anon_ids), forked)
                self.generation += 1

    def mincore(self, start, end):
        return bytes(page in self.pages for page in range(start, end, PAGE_SIZE))

    def _zap(self, start, end):
        super()._zap(start, end)
        self.guards = {page for page in self.guards if not start <= page < end}

    def _move(self, old, new, length):
        super()._move(old, new, length)
        moved = {page for page in self.guards if old <= page < old + length}
        self.guards = (self.guards - moved) | {page - old + new for page in moved}


def fake_map(*, capabilities=CAPABILITIES, settings=None, low=LOW, length=LENGTH):
    """Make a MemoryMap on the model."""
    mm = MemoryMap(
        FakePages(None, low, length), settings or VmSettings(), capabilities=capabilities
    )
    mm.core.tree = VmaTree(brk=mm.start_brk)
    return mm


class AdvisedProcess(FakeProcess, AdviceCalls):
    """Every memory call of a process, on the model."""

    def __init__(self):
        self.mm = fake_map()

    def touch(self, addr, length, write=False):
        self.mm.core.fault(addr, addr + length, write)

    def pagemap(self, addr, n):
        core = self.mm.core
        pages = range(addr, addr + n * PAGE_SIZE, PAGE_SIZE)
        return [(page in core.pages) << 63 | (page in core.guards) << 58 for page in pages]


@contextmanager
def as_advised(kind):
    """Give a new process, on the model or on real memory."""
    if kind == "model":
        yield AdvisedProcess()
        return
    with as_process(kind) as process:
        yield process


# ---- what tests of calls ask ----


def refused(number, call, *args):
    """Insist that a call fails with this errno."""
    with pytest.raises(OSError) as caught:
        call(*args)
    assert caught.value.errno == number, errno.errorcode.get(caught.value.errno)


def spans(p, base, *attributes):
    """Give pages of each VMA from ``base`` on: first, one past the last, and its attributes."""
    return [
        ((v.start - base) // PAGE_SIZE, (v.end - base) // PAGE_SIZE,
         *(getattr(v, name) for name in attributes))
        for v in p.vmas
    ]  # fmt: skip


def flags(p, addr):
    """Give the names of a VMA's flags."""
    return p.find_vma(addr).vm_flags


def vm_lck(p):
    """Give the number of locked pages."""
    return p.mm.core.counters[4]
