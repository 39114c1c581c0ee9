"""A process without memory, for the texts that describe one: pages are what a test says."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field
from types import SimpleNamespace

from realmem.layout import PAGE_SIZE
from realmem.mm.tree import VmaTree
from realmem.mm.vma import Vma
from realmem.thp import ThpSettings

SMAPS_COUNTS = tuple(
    "rss pss pss_dirty shared_clean shared_dirty private_clean private_dirty referenced anonymous "
    "lazyfree anon_huge shmem_huge file_huge swap swap_pss locked pss_anon pss_file "
    "pss_shmem".split()
)


class Counts(SimpleNamespace):
    """What the kernel side counts in a range; pss, pss_dirty and locked in bytes."""


PRIVATE_RW = 0x8100073          # rd wr mr mw me ac sd


def a_vma(start, end, flags=PRIVATE_RW, pgoff=None, object=None, policy=None, name=None):
    return Vma(start, end, flags, pgoff, object, policy, name)


@dataclass
class FakeShmem:
    size: int = 0
    inode: int = 7


class FakeCore:
    """Every page of ``pages`` is present, dirty, and mapped by ``sharers`` processes."""

    def __init__(self, pages=(), sharers=1):
        self.pages, self.sharers = set(pages), sharers
        self.counters = (100, 50, 10, 33, 4)
        self.rss = (1, 40, 5, 2)
        self.hiwater = (60, 90)
        self.nr_ptes = 3
        self.faults = (17, 2)
        self.cleared = []

    def check_alive(self):
        pass

    def within(self, start, end):
        return sum(start <= page < end for page in self.pages)

    def smaps(self, start, end):
        n = self.within(start, end)
        dirty = {"shared_dirty" if self.sharers > 1 else "private_dirty": n}
        pss = n * PAGE_SIZE // self.sharers
        known = {"rss": n, "pss": pss, "pss_dirty": pss, "pss_anon": pss, "referenced": n,
                 "anonymous": n, **dirty}
        return Counts(**{**dict.fromkeys(SMAPS_COUNTS, 0), **known})

    def numa(self, start, end):
        n = self.within(start, end)
        return n, n, self.sharers if n else 0, n, [n - n // 2, 0, n // 2], 0

    def pagemap(self, start, n):
        return [
            (1 << 63 | 1 << 56 | 1 << 55 | (addr >> 12) & 0xFFF) if addr in self.pages else 0
            for addr in range(start, start + n * PAGE_SIZE, PAGE_SIZE)
        ]

    def clear_refs(self, what, tree=None):
        self.cleared.append(what if tree is None else (what, list(tree)))

    def reset_hiwater(self):
        self.cleared.append("hiwater")


@dataclass
class FakeMap:
    core: FakeCore
    tree: VmaTree
    start_brk: int = 0x10000000
    start_stack: int = 0
    thp_disabled: int = 0
    lock: object = field(default_factory=nullcontext)
    capabilities: frozenset = frozenset({"CAP_SYS_ADMIN", "CAP_IPC_LOCK"})


@dataclass
class FakeNode:
    id: int = 0
    cpus: tuple = (0, 1)
    memory: int = 256 << 20
    end_pfn: int = 65536
    free_pages: int = 60000


class FakeMachine:
    def __init__(self, thp=None):
        self.thp = thp or ThpSettings(None)
        self.nodes = [FakeNode(), FakeNode(1, (), 0, 0, 0)]
        self.vmalloc_space = 64 << 30
        self.processes = {}

    class _vmalloc:
        nr_pages = 7

    class _allocator:
        @staticmethod
        def check_alive():
            pass


@dataclass
class FakeProcess:
    vmas: list
    core: FakeCore = field(default_factory=FakeCore)
    pid: int = 5
    name: str = "fake"
    parent: object = None
    uid: int = 0
    brk: int = 0x10000000
    machine: FakeMachine = field(default_factory=FakeMachine)

    def __post_init__(self):
        self.mm = FakeMap(self.core, VmaTree.of(self.vmas, self.brk))
        self.machine.processes[self.pid] = self
