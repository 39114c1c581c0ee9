"""Whole arrays of accesses come to what the same accesses come to one by one."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from soak import examples

import realmem as rm
from realmem import (
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_NORESERVE,
    MAP_PRIVATE,
    MAP_SHARED,
    PAGE_SIZE,
    PROT_NONE,
    PROT_READ,
    PROT_WRITE,
)

P = PAGE_SIZE
RW = PROT_READ | PROT_WRITE
BASE = (1 << 30) - 8 * P        # over the bounds of a table and of what lies above it
PAGES = 16


@pytest.fixture(scope="module")
def machine():
    with rm.Machine(nodes=1, memory="32M", window="1G") as machine:
        yield machine
        machine.check()


def laid_out(machine, kinds):
    """Give a process with a region of one page for each kind, and its child."""
    p = machine.spawn()
    for i, kind in enumerate(kinds):
        if kind == "hole":
            continue
        prot = {"read": PROT_READ, "none": PROT_NONE}.get(kind, RW)
        share = MAP_SHARED if kind == "shared" else MAP_PRIVATE
        p.mmap(BASE + i * P, P, prot, share | MAP_ANONYMOUS | MAP_FIXED)
        if kind in ("written", "copied"):
            p.write(BASE + i * P, bytes([i + 1]))
    child = p.fork()
    for i, kind in enumerate(kinds):
        if kind == "written":
            child.write(BASE + i * P, b"c")
    return p, child


def seen(p):
    """Tell all that accesses leave behind."""
    entries = [p.walk(BASE + i * P)[-1] for i in range(PAGES)]
    flags = [
        (entry.level, sorted((k, v) for k, v in entry.decoded.items() if k != "pfn"))
        for entry in entries
    ]
    return flags, p.min_flt, p.rss


def outcome(p, addresses, writes):
    try:
        p.access(addresses, writes)
    except rm.SegmentationFault as why:
        return why.done, why.address
    return len(addresses), None


KIND = st.sampled_from(["read", "none", "hole", "shared", "written", "copied", "fresh"])
USUAL = st.sampled_from(["shared", "written", "copied", "fresh"])


@given(
    st.one_of(st.lists(USUAL, min_size=PAGES, max_size=PAGES),
              st.lists(KIND, min_size=PAGES, max_size=PAGES)),
    st.integers(0, 2**32), st.integers(1, 200), st.sampled_from([0.0, 0.1, 0.5, 1.0]),
)
@examples(120)
def test_arrays_come_to_what_single_accesses_do(machine, kinds, seed, n, share):
    rng = np.random.default_rng(seed)
    addresses = BASE + rng.integers(0, PAGES * P, n)
    writes = rng.random(n) < share
    families = [laid_out(machine, kinds) for _ in range(2)]
    for (whole, _), (single, _) in (families, [family[::-1] for family in families]):
        done = outcome(whole, addresses, writes)
        alone = 0
        for at, write in zip(addresses, writes, strict=True):
            one, bad = outcome(single, [at], bool(write))
            alone += one
            if bad is not None:
                assert done == (alone, bad)
                break
        else:
            assert done == (n, None)
        assert seen(whole) == seen(single)
    for parent, child in families:
        child.exit()
        parent.wait()
        parent.exit()


def test_a_long_array_over_many_tables(machine):
    p = machine.spawn()
    step = 1 << 21
    at = p.mmap(None, 700 * step, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE)
    pages = at + step * np.arange(0, 700, 2, dtype=np.uint64)
    addresses = np.concatenate([pages, pages[::-1], pages])
    p.access(addresses, np.arange(len(addresses)) >= 2 * len(pages))
    assert p.min_flt == 2 * len(pages)      # a read of nothing, then the store
    assert p.rss == len(pages)
    p.exit()


def test_what_was_read_is_not_stored_to_where_it_was(machine):
    # In one block: a read sees the zero page, a store replaces it, more stores follow.
    p = machine.spawn()
    at = p.mmap(None, 4 * P, RW, MAP_PRIVATE | MAP_ANONYMOUS)
    p.access([at] * 40)
    child = p.fork()
    p.access([at + i % 4 * P for i in range(64)], [i % 3 == 1 for i in range(64)])
    assert p.read(at, 4 * P) == child.read(at, 4 * P) == bytes(4 * P)
    machine.check()
    for q in (child, p):
        q.exit()


# With debug=1 a thread that would wait for itself dies instead.
WINDOW_ARRAYS = """
import sys
import numpy as np
import realmem as rm

with rm.Machine(nodes=1, memory="16M", window="1G", debug=1) as machine:
    p = machine.spawn()
    at = p.mmap(None, 8192, rm.PROT_READ | rm.PROT_WRITE, rm.MAP_PRIVATE | rm.MAP_ANONYMOUS)
    p.write(at, np.full(64, at, dtype=np.uint64).tobytes())
    view = p.view(at, 8192)
    if sys.argv[1] == "addresses":
        p.access(np.frombuffer(view[:512], dtype=np.uint64))
    else:
        p.access(np.full(64, at, dtype=np.uint64), np.frombuffer(view[4096:4160], dtype=bool))
    assert p.min_flt == (1 if sys.argv[1] == "addresses" else 2)
print("done")
"""


@pytest.mark.parametrize("which", ["addresses", "writes"])
def test_arrays_may_lie_in_a_window(which):
    done = subprocess.run([sys.executable, "-c", WINDOW_ARRAYS, which], capture_output=True,
                          text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


def test_arrays_are_taken_in_any_layout(machine):
    p = machine.spawn()
    at = p.mmap(None, 64 * P, RW, MAP_PRIVATE | MAP_ANONYMOUS)
    every = at + P * np.arange(64, dtype=np.uint64)
    writes = np.arange(64) % 3 == 0
    p.access(every[::-2], writes[::-2])
    assert p.rss == np.count_nonzero(writes[::-2]) and p.min_flt == 32
    p.exit()


@pytest.mark.parametrize("page", [1, 511, 512, (1 << 35) - 1, 1 << 35, 1 << 51, (1 << 52) - 1])
def test_where_no_table_is_nothing_is_found(machine, page):
    # The lowest 2 MiB, too, which an empty place of the soft TLB might be taken for.
    p = machine.spawn()
    at = p.mmap(None, 64 * P, RW, MAP_PRIVATE | MAP_ANONYMOUS)
    for before in (0, 33, 70):
        addresses = np.array([at + i % 64 * P for i in range(before)] + [page * P] * 64, np.uint64)
        for write in (False, True):
            assert outcome(p, addresses, write) == (before, page * P)
    p.exit()
