"""KeyboardInterrupt before any line of mremap, madvise and their kin: all is done, or nothing."""

from __future__ import annotations

import random
import sys

import pytest
from fake_pages import FIXED, RW, P, as_advised

from realmem import layout
from realmem.layout import (
    MADV_DONTNEED,
    MADV_GUARD_INSTALL,
    MADV_GUARD_REMOVE,
    MADV_SEQUENTIAL,
    MREMAP_DONTUNMAP,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    PROT_READ,
    PROT_WRITE,
)
from realmem.mm.vma import VM_MAYBE_GUARD, VM_SOFTDIRTY

PAGES = 16
TO = MREMAP_MAYMOVE | MREMAP_FIXED
ADVICE = [MADV_DONTNEED, MADV_SEQUENTIAL, MADV_GUARD_INSTALL, MADV_GUARD_REMOVE]


@pytest.fixture
def pair():
    with as_advised("real") as one, as_advised("real") as other:    # a model's commit is long
        yield one, other


def arena(p):
    return p.mm.low + (1 << 28)


def state(p):
    """Give what a call may change; which pages a lock has brought in is nobody's promise."""
    base = arena(p)
    ignored = VM_SOFTDIRTY | VM_MAYBE_GUARD
    vmas = [
        (vma.start - base, vma.end - base, vma.vm_flags_word & ~ignored, vma.name)
        for vma in p.vmas
    ]
    return vmas, tuple(p.mm.core.counters), p.mm.tree.def_flags


def pages(p):
    base = arena(p)
    words = p.pagemap(base, 4 * PAGES)
    return "".join("g" if word >> 58 & 1 else "x" if word >> 63 else "." for word in words)


def calls(rng):
    """Give random calls, each a name and its arguments, addresses from the arena's start."""
    while True:
        start, length = rng.randrange(PAGES) * P, rng.randrange(1, 6) * P
        to = (PAGES * 2 + rng.randrange(PAGES)) * P
        yield rng.choice([
            ("madvise", start, length, rng.choice(ADVICE)),
            ("madvise", start, 8 * P, rng.choice(ADVICE)),
            ("mremap", start, length, length, TO, to),
            ("mremap", start, length, length, TO | MREMAP_DONTUNMAP, to),
            ("mremap", start, length, max(length - P, P), 0, 0),
            ("mlock", start, length),
            ("munlock", start, 8 * P),
            ("mlockall", rng.choice([1, 2, 3])),
            ("munlockall",),
            ("prctl", layout.PR_SET_VMA, 0, start, length, rng.choice(["a", None])),
            ("prctl", layout.PR_SET_MEMORY_MERGE, rng.randrange(2)),
            ("mmap", start, length, rng.choice([PROT_READ, RW]), FIXED),
        ])  # fmt: skip


def make(p, name, *args):
    """Make a call; give its errno."""
    base = arena(p)
    if name in ("madvise", "mlock", "munlock", "mmap"):
        args = (args[0] + base, *args[1:])
    elif name == "mremap":
        args = (args[0] + base, *args[1:4], args[4] + base if args[4] else 0)
    elif name == "prctl" and len(args) > 2:
        args = (*args[:2], args[2] + base, *args[3:])
    try:
        getattr(p, name)(*args)
    except OSError as error:
        return error.errno
    return 0


def test_all_or_nothing(pair, soak_factor):
    p, twin = pair
    rng = random.Random(7)
    interrupted = done = 0
    for call, _ in zip(calls(rng), range(int(800 * soak_factor)), strict=False):
        for process in pair:
            if "mlock" not in call[0]:
                # As far as locks brought pages in, both have them.
                for vma in process.vmas:
                    if vma.locked and vma.prot & PROT_WRITE:
                        touch_what_can(process, vma)
        before = state(p), pages(p)
        make(twin, *call)
        left = [rng.randrange(400)]

        def tracer(frame, event, arg, left=left):
            if event == "line" and "realmem/mm" in frame.f_code.co_filename:
                left[0] -= 1
                if left[0] < 0:
                    raise KeyboardInterrupt
            return tracer

        sys.settrace(tracer)
        try:
            make(p, *call)
        except KeyboardInterrupt:
            interrupted += 1
        finally:
            sys.settrace(None)
        now, after = (state(p), pages(p)), (state(twin), pages(twin))
        loose = call[0] in ("mlock", "mlockall", "mmap", "mremap")      # they bring pages in
        if now[0] == after[0] and (loose or now[1] == after[1]):
            done += 1
        else:
            assert now == before, call
        make(p, *call)                  # what was done is done again, or done now
        if state(p) != state(twin) or pages(p) != pages(twin):
            for process in pair:        # a move can't be done twice
                process.munlockall()
                process.munmap(arena(process), 4 * PAGES * P)
    assert interrupted > 100 < done


def touch_what_can(p, vma):
    base = arena(p)
    for i, found in enumerate(pages(p)):
        addr = base + i * P
        if vma.start <= addr < vma.end and found == ".":
            p.touch(addr, P, True)
