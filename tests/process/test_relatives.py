"""Random calls of processes that are relatives, against a plain model of every page."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from relatives import Relatives
from soak import examples

import realmem as rm
from realmem import MAP_ANONYMOUS, MAP_FIXED, MAP_PRIVATE, PAGE_SIZE, PROT_READ, PROT_WRITE
from realmem.mm.tree import VmaTree
from realmem.mm.vma import Vma

THP = "/sys/kernel/mm/transparent_hugepage"
RW, ANON = PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS
RIGHTS = 0x73                   # VM_READ WRITE MAYREAD MAYWRITE MAYEXEC
BYTES = st.integers(0, 255)


def calls(*names: str, pages: int, longest: int) -> st.SearchStrategy[list[tuple]]:
    return st.lists(
        st.tuples(st.sampled_from(names), st.integers(0, 4), st.integers(0, pages - 1),
                  st.integers(0, longest - 1), BYTES),
        min_size=10, max_size=60,
    )


def run(machine: rm.Machine, steps: list[tuple], pages: int, align: int = PAGE_SIZE) -> None:
    relatives = Relatives(machine, pages, align=align)
    relatives.start()
    try:
        relatives.do("private", 0, 0, pages // 2, 0)
        relatives.do("shared", 0, pages // 2, pages, 0)
        for step in steps:
            relatives.do(*step)
        relatives.compare()
    finally:
        relatives.end()


@pytest.fixture(scope="module")
def machine():
    with rm.Machine(nodes=1, memory="64M", window="1G") as machine:
        yield machine


@pytest.fixture(scope="module", params=[4, 9], ids=["64kB", "2048kB"])
def folios(request):
    with rm.Machine(nodes=1, memory="96M", window="1G") as machine:
        kb = 4 << request.param
        machine.sysfs[f"{THP}/hugepages-{kb}kB/enabled"] = "always"
        yield machine, 1 << request.param
        stats = f"{THP}/hugepages-{kb}kB/stats/anon_fault_alloc"
        assert int(machine.sysfs[stats]) > 0


EVERYTHING = ("private", "shared", "munmap", "mprotect", "store", "store", "store", "load",
              "flush", "fork", "fork", "exit", "dontneed", "remove", "mremap")


@examples(150)
@given(steps=calls(*EVERYTHING, pages=48, longest=12))
def test_contents_and_mappings(machine, steps):
    run(machine, steps, 48)


@examples(100)
@given(steps=calls("shared", "store", "store", "load", "fork", "fork", "exit", "remove", "munmap",
                   "flush", "mprotect", pages=16, longest=6))
def test_shared_memory_of_relatives(machine, steps):
    """What one stores the others see, where the page was first touched after the fork too."""
    run(machine, [("shared", 0, 0, 16, 0), ("fork", 0, 0, 0, 0), *steps], 16)


@examples(25)
@given(data=st.data())
def test_folios(folios, data):
    """Stores bring many pages at once: none of them is another's, parts of them go and stay."""
    machine, size = folios
    pages = min(3 * size, 1100)
    steps = data.draw(calls("private", "munmap", "mprotect", "store", "store", "load", "fork",
                            "flush", "exit", "dontneed", "mremap", pages=pages, longest=size))
    run(machine, [("private", 0, 0, pages, 0), *steps], pages, align=size * PAGE_SIZE)


# ---- the index of VMAs ----


@examples(6)
@given(
    rounds=st.lists(
        st.tuples(st.integers(0, 5999), st.integers(1, 4000), st.integers(0, 100),
                  st.randoms(use_true_random=False)),
        min_size=1, max_size=8),
)
def test_thousands_of_vmas_in_one_change(machine, rounds):
    """Ranges of the index become others at once: many chunks are split, emptied and joined."""
    p = machine.spawn()
    try:
        base = p.mm.low + (128 << 20)
        slots: set[int] = set()
        for low, length, share, rng in rounds:
            lo, hi = low, min(low + length, 6000)
            new = [slot for slot in range(lo, hi) if rng.randrange(100) < share]
            slots = {slot for slot in slots if not lo <= slot < hi} | set(new)
            vmas = [Vma(base + 2 * slot * PAGE_SIZE, base + (2 * slot + 1) * PAGE_SIZE, RIGHTS)
                    for slot in sorted(slots)]
            there = [vma for vma in vmas
                     if lo <= (vma.start - base) // (2 * PAGE_SIZE) < hi]
            start, end = base + 2 * lo * PAGE_SIZE, base + 2 * hi * PAGE_SIZE
            assert p.mm.core.commit(
                [("vmas", start, end, [(vma, -1) for vma in there]), ("zap", start, end)],
                VmaTree.of(vmas, p.mm.core.tree.brk), (0,) * 5, p.mm.core.generation, 0)
            assert p.mm.core.counters[0] == len(slots)
            machine.check()
            for slot in rng.sample(range(6000), 200):
                at = base + 2 * slot * PAGE_SIZE
                if slot in slots:
                    p.write(at, b"x")
                    assert p.find_vma(at).start == at
                else:
                    with pytest.raises(rm.SegmentationFault):
                        p.read(at, 1)
                with pytest.raises(rm.SegmentationFault):
                    p.read(at + PAGE_SIZE, 1)
        machine.check()
        assert p.rss <= len(slots)
    finally:
        p.exit()


@examples(3)
@given(rng=st.randoms(use_true_random=False))
def test_single_vmas_in_random_order(machine, rng):
    p = machine.spawn()
    base = p.mm.low + (128 << 20)
    slots = rng.sample(range(3000), 900)
    for slot in slots:
        p.mmap(base + 2 * slot * PAGE_SIZE, PAGE_SIZE, RW, ANON | MAP_FIXED)
    gone = set(rng.sample(slots, 600))
    for slot in gone:
        p.munmap(base + 2 * slot * PAGE_SIZE, PAGE_SIZE)
    machine.check()
    left = set(slots) - gone
    assert {(vma.start - base) // (2 * PAGE_SIZE) for vma in p.vmas} == left
    p.access([base + 2 * slot * PAGE_SIZE for slot in sorted(left)], True)
    assert p.rss == len(left)
    p.munmap(base, 6000 * PAGE_SIZE)
    assert p.vmas == [] and p.rss == 0
    machine.check()
    p.exit()
