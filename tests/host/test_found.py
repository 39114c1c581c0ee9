"""Steps on which realmem once parted from the kernel, shrunk: they stay together."""

from __future__ import annotations

import os
import platform

import pytest
from host.compare import Pair, replay
from host.ops import BASE, PAGE, Op

pytestmark = pytest.mark.skipif(
    platform.machine() != "x86_64", reason="the drivers of the host's side are x86-64 code")

RW, READ, NONE = 3, 1, 0
PRIVATE = 2
ANON, SHARED, FIXED, LOCKED, GROWS = 0x22, 0x21, 0x10, 0x2000, 0x100
GUARD, UNGUARD, DONTNEED = 102, 103, 4
MOVE, DONTUNMAP = 3, 7
A, B = BASE - 100 * PAGE, BASE - 50 * PAGE
FORK = Op(1, "fork", (2,))


def mapped(pages: int, flags: int = ANON, at: int = A, prot: int = RW) -> Op:
    return Op(1, "mmap", (at, pages * PAGE, prot, flags | FIXED, 0))


def mapped_file(pages: int, flags: int) -> Op:
    return Op(1, "mmap", (A, pages * PAGE, RW, flags | FIXED, 0, 0, os.O_RDWR))


def advised(page: int, pages: int, advice: int) -> Op:
    return Op(1, "madvise", (A + page * PAGE, pages * PAGE, advice))


FOUND = {
    "guard regions in shared memory, then a split":
        [mapped(4, SHARED), advised(0, 4, GUARD), Op(1, "munmap", (A + 3 * PAGE, PAGE))],
    "guard regions in shared memory need no anon_vma: a child's VMAs merge":
        [mapped(8, SHARED), advised(2, 6, GUARD), Op(1, "mlock2", (A + 3 * PAGE, PAGE, 1)), FORK,
         Op(2, "mlockall", (7,))],
    "a child gets the entries of shared memory that has guard regions":
        [mapped(2, SHARED), advised(0, 1, GUARD), Op(1, "mremap", (A, 2 * PAGE, 2 * PAGE,
         DONTUNMAP, B)), Op(1, "write", (A + PAGE, 1, 1, False)), FORK],
    "mincore looks behind guard regions of shared memory":
        [mapped(1, SHARED), Op(1, "write", (A, 1, 1, False)), advised(0, 1, GUARD),
         Op(1, "mincore", (A, PAGE))],
    "a mark of guard regions does not keep neighbours from sharing an anon_vma":
        [mapped(3), advised(2, 1, GUARD), Op(1, "mprotect", (A + 2 * PAGE, PAGE, READ)),
         advised(2, 1, UNGUARD), Op(1, "write", (A, 1, 1, False)),
         Op(1, "mprotect", (A, 3 * PAGE, NONE))],
    "what merges with what it leaves moves once":
        [mapped(4), Op(1, "read", (A + 2 * PAGE, 1, 0, False)),
         Op(1, "mremap", (A, 2 * PAGE, 2 * PAGE, DONTUNMAP, A + 4 * PAGE))],
    "what may not be locked merges with nothing where all new memory is":
        [Op(1, "mlockall", (3,)), mapped(2, 0x28, A + 2 * PAGE), mapped(2, 0x28), mapped(2, 0x28)],
    "a refused mprotect has populated what it made writable":
        [mapped(3, ANON | LOCKED, prot=READ), Op(1, "mprotect", (A, 5 * PAGE, RW))],
    "an mprotect of several locked VMAs faults each in before it comes to the next":
        [mapped(8, ANON | LOCKED, prot=READ), Op(1, "mprotect", (A + 3 * PAGE, 5 * PAGE, 7)),
         Op(1, "mprotect", (A, PAGE, 4)), Op(1, "mprotect", (A, 7 * PAGE, RW)),
         Op(1, "mprotect", (A, 8 * PAGE, READ)), Op(1, "mprotect", (A, 8 * PAGE, RW))],
    "an mprotect of what is locked on fault faults nothing in":
        [mapped(8), Op(1, "write", (A + 7 * PAGE, 1, 1, False)), mapped(5, prot=NONE),
         Op(1, "mprotect", (A + 2 * PAGE, PAGE, 5)), Op(1, "mlockall", (7,)),
         Op(1, "mprotect", (A + PAGE, 6 * PAGE, RW))],
    "process_madvise of an address that no process has":
        [mapped(2), Op(1, "process_madvise",
                       (((A, PAGE), ((1 << 47) - PAGE, PAGE)), DONTNEED))],
    "process_madvise passes over empty ranges":
        [mapped(2), Op(1, "process_madvise", (((A, PAGE), (1, 0), (A, PAGE)), DONTNEED))],
    "process_madvise looks at a first empty range":
        [mapped(2), Op(1, "process_madvise", (((1, 0), (A, PAGE)), DONTNEED))],
    "a child is not given the zero page":
        [mapped(2), Op(1, "read", (A, 1, 0, False)), FORK],
    "a forked VMA merges with nothing new":
        [mapped(2), Op(1, "write", (A, 1, 1, False)), FORK,
         Op(2, "mmap", (A + 2 * PAGE, PAGE, RW, ANON | FIXED, 0))],
    "a page below is given where the hint is odd":
        [Op(1, "mmap", (A + 1, PAGE, RW, ANON, 0))],
    "two neighbours of different origin: what comes between is the left one's":
        [mapped(1), Op(1, "write", (A, 1, 1, False)), mapped(1, at=A + 2 * PAGE),
         Op(1, "write", (A + 2 * PAGE, 1, 1, False)), mapped(1, at=A + PAGE)],
    "a store is refused where the host had the page writable":
        [mapped(2), Op(1, "write", (A, 2 * PAGE, 1, True)), Op(1, "mprotect", (A, PAGE, READ)),
         Op(1, "write", (A, 1, 2, True)), Op(1, "mprotect", (A, 2 * PAGE, NONE)),
         Op(1, "read", (A + PAGE, 1, 0, True))],
    "a store after a fork reaches no other process":
        [mapped(2), Op(1, "write", (A, 2 * PAGE, 1, True)), FORK,
         Op(1, "write", (A, 1, 9, True)), Op(2, "write", (A + PAGE, 1, 9, True))],
    "made writable again, what is shared is copied":
        [mapped(2), Op(1, "write", (A, 2 * PAGE, 1, False)), FORK,
         Op(1, "mprotect", (A, 2 * PAGE, READ)), Op(1, "mprotect", (A, 2 * PAGE, RW)),
         Op(1, "write", (A, 1, 9, False)), Op(1, "write", (A + PAGE, 1, 9, True))],
    "what was mapped at the old place is gone from there":
        [mapped(2), Op(1, "write", (A, 2 * PAGE, 1, True)),
         Op(1, "mremap", (A, 2 * PAGE, 2 * PAGE, DONTUNMAP, B)),
         Op(1, "read", (A, 1, 0, True)), Op(1, "write", (A + PAGE, 1, 5, True)),
         Op(1, "read", (B, 2 * PAGE, 0, True))],
    "dropped pages are zero where the host had them":
        [mapped(3), Op(1, "write", (A, 3 * PAGE, 1, True)), advised(0, 2, DONTNEED),
         Op(1, "read", (A, 3 * PAGE, 0, True)), advised(1, 2, GUARD),
         Op(1, "read", (A + PAGE, 1, 0, True))],
    "what is locked is not counted twice":
        [mapped(2), Op(1, "capability", ("CAP_IPC_LOCK", False)),
         Op(1, "rlimit", ("MEMLOCK", 2 * PAGE)), Op(1, "mlock", (A, 2 * PAGE)),
         Op(1, "mlock", (A, 2 * PAGE)), mapped(1, at=B), Op(1, "mlock", (B, PAGE))],
    "neighbours share an anon_vma though their rights differ":
        [mapped(4), Op(1, "mprotect", (A, 2 * PAGE, READ)),
         Op(1, "write", (A + 2 * PAGE, 1, 1, False)), Op(1, "mprotect", (A, 2 * PAGE, 2)),
         Op(1, "write", (A, 1, 1, False)), Op(1, "mprotect", (A, 4 * PAGE, NONE))],
    "a stack keeps a gap of 256 pages to what lies below":
        [mapped(1, at=B), mapped(1, ANON | GROWS, at=B + 257 * PAGE),
         Op(1, "write", (B + 256 * PAGE, 1, 1, False))],
    "a stack grows up to a gap of 256 pages":
        [mapped(1, at=B), mapped(1, ANON | GROWS, at=B + 258 * PAGE),
         Op(1, "write", (B + 257 * PAGE, 1, 1, False)),
         Op(1, "write", (B + 256 * PAGE, 1, 1, False))],
    "a stack grows up to its limit":
        [Op(1, "rlimit", ("STACK", 2 * PAGE)), mapped(1, ANON | GROWS),
         Op(1, "write", (A - PAGE, 1, 1, False)), Op(1, "write", (A - 2 * PAGE, 1, 1, False))],
    "MADV_REMOVE takes all of the range":
        [mapped(3, SHARED), Op(1, "write", (A, 3 * PAGE, 1, False)), advised(0, 2, 9),
         Op(1, "read", (A, 3 * PAGE, 0, False))],
    "a store behind the end of a file leaves an anon_vma":
        [mapped_file(4, PRIVATE), Op(0, "truncate", (0, 2 * PAGE)),
         Op(1, "mlock", (A + PAGE, 2 * PAGE)), Op(1, "write", (A + 3 * PAGE, 1, 1, False)),
         Op(1, "munlockall")],
    "guard regions in a private mapping of a file need no anon_vma: a child's VMAs merge":
        [mapped_file(3, PRIVATE), Op(1, "mprotect", (A, PAGE, READ)), advised(0, 3, GUARD), FORK,
         Op(2, "mprotect", (A, PAGE, RW))],
    "a refused fixed map over a hole":
        [mapped(2), Op(1, "mmap", (1 << 47, PAGE, RW, ANON | FIXED, 0))],
}


@pytest.fixture(scope="module")
def pair():
    from host.host_world import HostWorld
    from host.real_world import RealWorld

    real = RealWorld()
    host = HostWorld(real.distance)
    yield Pair(host, real)
    host.close()
    real.reset()
    real.close()


@pytest.mark.parametrize("name", FOUND)
def test_they_stay_together(pair, name):
    assert replay(pair, [Op(1, "spawn"), *FOUND[name]]) is None
