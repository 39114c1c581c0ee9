"""
A plain model of the kernel side's address space (realmem._core.mm.AddressSpace), without memory.

It keeps a sorted list of VMAs, runs the steps of a commit on it one by one, and insists that the
list is then what the tree shows.  Pages are a set of addresses; anon_vmas are numbers.
"""

from __future__ import annotations

import errno
import itertools
import os
import weakref
from contextlib import contextmanager

from realmem.layout import PAGE_SIZE, RLIM_INFINITY
from realmem.mm.address_space import MemoryMap
from realmem.mm.limits import CAPABILITIES
from realmem.mm.settings import VmSettings
from realmem.mm.tree import VmaTree
from realmem.mm.vma import (
    VM_ACCOUNT,
    VM_GROWSDOWN,
    VM_LOCKED,
    VM_READ,
    VM_STICKY,
    VM_WIPEONFORK,
    VM_WRITE,
    is_data_mapping,
    is_exec_mapping,
)
from realmem.syscalls import SystemCalls

LOW = 0x7000_0000_0000
LENGTH = 1 << 36


class FakeShmem:
    """An object of shared anonymous memory; charged while anything keeps it."""

    def __init__(self, mmu, size, noreserve):
        self.size = size
        if not noreserve:
            mmu.committed += size
            weakref.finalize(self, mmu.give_back, size)


class FakeInode:
    """A file's frames: none."""

    def __init__(self, key):
        self.key = key
        self.users = 1

    def open(self, fd, write):
        """Do nothing."""

    def rest(self):
        """Do nothing."""


class FakeMmu:
    """What all processes share: committed pages, and the number of anon_vmas made."""

    def __init__(self, totalram=1 << 30):
        self.totalram = totalram
        self.committed = 0
        self.anon_ids = itertools.count(1)

    def give_back(self, pages):
        self.committed -= pages

    def rest_files(self):
        """Do nothing: the model maps no files."""


class FakeCore:
    """The interface of PLAN's kernel side, as a model."""

    def __init__(self, mmu=None, low=LOW, length=LENGTH):
        self.mmu = mmu or FakeMmu()
        self.user_start = low
        self.length = length
        self.tree = VmaTree()
        self.generation = 0
        self.vmas = []                  # (vma, anon id, forked), in order
        self.pages = set()
        self.counters = (0, 0, 0, 0, 0)
        self.limits = {}
        self.capabilities = (False, False)
        self.covered = []
        self.commits = 0
        self.log = []
        self.stale = 0                  # how many of the next commits to answer as stale
        self.alive = True

    # ---- the interface ----

    def check_alive(self):
        if not self.alive:
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))

    def sync(self):
        return []

    def set_limit(self, which, value):
        assert 0 <= value <= RLIM_INFINITY
        self.limits[which] = value

    def set_capabilities(self, ipc_lock, sys_admin):
        self.capabilities = (ipc_lock, sys_admin)

    def cover(self, start, end):
        self.covered.append((start, end))

    def anon_vma(self, start):
        for vma, anon, forked in self.vmas:
            if vma.start == start:
                return (anon, forked)
        raise AssertionError(f"no published VMA starts at {start:#x}")

    def commit(self, steps, tree, deltas, generation, charge):
        self.commits += 1
        if self.stale:
            self.stale -= 1
            self.generation += 1
        if generation != self.generation:
            return False
        if charge > self.mmu.totalram - (self.mmu.committed if charge < 0 else 0) and charge > 0:
            raise OSError(errno.ENOMEM, "overcommit")
        for step in steps:
            getattr(self, "_" + step[0])(*step[1:])
        self.log = steps
        assert [vma for vma, _, _ in self.vmas] == list(tree)
        self.mmu.committed += charge
        self.counters = tuple(a + b for a, b in zip(self.counters, deltas, strict=True))
        assert self.counters == self.recount(), (self.counters, self.recount())
        self.tree = tree
        return True

    def populate(self, start, end, write):
        vma = self.tree.at(start)
        assert vma is not None and vma.end >= end
        if not vma.vm_flags_word & (VM_WRITE if write else VM_READ):
            return (1, start)
        self.fault(start, end, write)
        return (0, 0)

    def shmem_create(self, pages, noreserve=False):
        return FakeShmem(self.mmu, pages, noreserve)

    def inode(self, key, fd):
        return FakeInode(key)

    # ---- steps ----

    def _vmas(self, lo, hi, pairs):
        old = {vma.start: (anon, forked) for vma, anon, forked in self.vmas}
        new = [(vma, *((0, False) if source < 0 else old[source])) for vma, source in pairs]
        kept = [entry for entry in self.vmas if not lo <= entry[0].start < hi]
        self.vmas = sorted(kept + new, key=lambda entry: entry[0].start)
        for (one, _, _), (other, _, _) in itertools.pairwise(self.vmas):
            assert one.end <= other.start, "VMAs overlap"
        assert all(v.start < v.end and not (v.start | v.end) % PAGE_SIZE for v, _, _ in new)

    def _zap(self, start, end):
        assert start < end
        self.pages = {page for page in self.pages if not start <= page < end}

    def _protect(self, start, end):
        assert start < end

    def _lock(self, start, end, on):
        assert start < end

    def _anon(self, start, end):
        i = next(i for i, (vma, _, _) in enumerate(self.vmas) if vma.start == start)
        vma, anon, forked = self.vmas[i]
        assert vma.end == end and not anon
        self.vmas[i] = (vma, self._reusable(i) or next(self.mmu.anon_ids), forked)

    def _move(self, old, new, length):
        moved = {page for page in self.pages if old <= page < old + length}
        self.pages = (self.pages - moved) | {page - old + new for page in moved}

    # ---- what tests ask ----

    def recount(self):
        total = data = text = stack = locked = 0
        for vma, _, _ in self.vmas:
            total += vma.pages
            if is_exec_mapping(vma.vm_flags_word):
                text += vma.pages
            elif vma.vm_flags_word & VM_GROWSDOWN:
                stack += vma.pages
            elif is_data_mapping(vma.vm_flags_word):
                data += vma.pages
            if vma.vm_flags_word & VM_LOCKED:
                locked += vma.pages
        return (total, data, text, stack, locked)

    def accounted(self):
        return sum(v.pages for v, _, _ in self.vmas if v.vm_flags_word & VM_ACCOUNT)

    def fault(self, start, end, write=True):
        """Touch pages; a VMA's first write fault gives it an anon_vma, a neighbour's if it may."""
        for i, (vma, anon, forked) in enumerate(self.vmas):
            if vma.end <= start or vma.start >= end or not vma.private_anon:
                continue
            if write and not anon:
                anon = self._reusable(i) or next(self.mmu.anon_ids)
                self.vmas[i] = (vma, anon, forked)
                self.generation += 1
            for page in range(max(start, vma.start), min(end, vma.end), PAGE_SIZE):
                self.pages.add(page)

    def _reusable(self, i):
        """Compare mm/vma.c:find_mergeable_anon_vma()."""
        vma = self.vmas[i][0]
        for at in (i + 1, i - 1):
            if not 0 <= at < len(self.vmas):
                continue
            other, anon, forked = self.vmas[at]
            one, two = (vma, other) if at > i else (other, vma)
            if (
                anon
                and not forked
                and one.end == two.start
                and one.policy == two.policy
                and one.object is two.object
                and not (one.vm_flags_word ^ two.vm_flags_word) & ~(0x7 | VM_STICKY)
                and two.pgoff == one.pgoff + one.pages
            ):
                return anon
        return 0

    def fork_into(self, child, tree):
        mine = {vma.start: (anon, forked) for vma, anon, forked in self.vmas}
        child.vmas = []
        for vma in tree:
            anon = mine[vma.start][0]
            if vma.vm_flags_word & VM_WIPEONFORK:
                anon = 0
            child.vmas.append((vma, next(self.mmu.anon_ids) if anon else 0, bool(anon)))
        child.tree = tree
        child.counters = child.recount()
        child.pages = {
            page for page in self.pages if any(v.start <= page < v.end for v, _, _ in child.vmas)
        }


def fake_map(
    mmu=None, *, kind=MemoryMap, capabilities=CAPABILITIES, settings=None, low=LOW, length=LENGTH
):
    """Make a MemoryMap on a model."""
    mm = kind(
        FakeCore(mmu, low, length), settings or VmSettings(), capabilities=capabilities
    )
    mm.core.tree = VmaTree(brk=mm.start_brk)
    return mm


class FakeProcess(SystemCalls):
    """The calls of a process, on a model."""

    def __init__(self):
        self.mm = fake_map()

    @property
    def rlimit(self):
        return self.mm.rlimit

    @property
    def capabilities(self):
        return self.mm.capabilities

    @property
    def vmas(self):
        return list(self.mm.tree)

    @property
    def rss(self):
        return len(self.mm.core.pages)

    def find_vma(self, addr):
        return self.mm.find_vma(addr)


@contextmanager
def as_process(kind):
    """Give a new process of one of these kinds."""
    if kind == "model":
        yield FakeProcess()
        return
    from realmem.machine import Machine

    with Machine(nodes=1, memory="64M", window="1G", debug=1) as machine:
        yield machine.spawn()
        machine.check()
