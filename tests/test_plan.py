"""Plans on the model of the kernel side: merging by anon_vma, retries, interruption."""

from __future__ import annotations

import errno

import pytest
from fake_core import FakeCore, FakeMmu, FakeProcess, fake_map

from realmem.layout import (
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_PRIVATE,
    PAGE_SIZE,
    PROT_READ,
    PROT_WRITE,
)
from realmem.mm.address_space import MemoryMap, forked_tree
from realmem.mm.plan import KEEP, Plan
from realmem.mm.vma import (
    VM_ACCOUNT,
    VM_DONTCOPY,
    VM_DONTEXPAND,
    VM_IO,
    VM_LOCKED,
    VM_MAY_ALL,
    VM_MIXEDMAP,
    VM_PFNMAP,
    VM_READ,
    VM_SEQ_READ,
    VM_SOFTDIRTY,
    VM_WIPEONFORK,
    VM_WRITE,
    FileRef,
    Vma,
)

P = PAGE_SIZE
RW = PROT_READ | PROT_WRITE
FIXED = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED
FLAGS = VM_READ | VM_WRITE | VM_MAY_ALL | VM_ACCOUNT | VM_SOFTDIRTY
A = 0x7000_1000_0000


@pytest.fixture
def p():
    return FakeProcess()


def put(p, page, pages=1):
    return p.mmap(A + page * P, pages * P, RW, FIXED)


def fault(p, page, pages=1):
    p.mm.core.fault(A + page * P, A + (page + pages) * P)


def layout(p):
    return [((v.start - A) // P, (v.end - A) // P) for v in p.vmas]


def anon(p, page):
    return p.mm.core.anon_vma(A + page * P)


def move(p, old, pages, new):
    """Move pages as mremap does: copy, move, unmap; onto free room."""

    def planner(plan):
        vma = plan.tree.at(A + old * P)
        plan.copy(vma, A + old * P, pages * P, A + new * P)
        plan.account(vma.vm_flags_word, pages)
        plan.charge_pages(pages)
        plan.move(A + old * P, A + new * P, pages * P)
        plan.unmap(A + old * P, A + (old + pages) * P)

    p.mm.change(planner)


def forked(p):
    child = FakeProcess()
    core = FakeCore(p.mm.core.mmu)
    child.mm = MemoryMap(core, p.mm.settings)
    p.mm.core.fork_into(core, forked_tree(p.mm.tree))
    return child


# ---- merging ----


@pytest.mark.conformance("VM-04", "VM-05")
def test_what_never_merges():
    mm = fake_map()
    file = FileRef("/x")
    base = Vma(A, A + P, FLAGS, 7, file)
    others = [
        Vma(A + P, A + 2 * P, FLAGS, 9, file),                  # not linear
        Vma(A + P, A + 2 * P, FLAGS, 8, FileRef("/x")),         # another opened file
        Vma(A + P, A + 2 * P, FLAGS, 8, None),
        Vma(A + P, A + 2 * P, FLAGS | VM_SEQ_READ, 8, file),
        Vma(A + P, A + 2 * P, FLAGS, 8, file, name="x"),
        Vma(A + P, A + 2 * P, FLAGS, 8, file, policy="bind"),
    ]
    for other in others:
        plan = Plan(mm)
        plan.insert(base)
        assert plan.insert(other) == other and len(plan.tree) == 2
    plan = Plan(mm)
    plan.insert(base)
    assert plan.insert(Vma(A + P, A + 2 * P, FLAGS, 8, file)).pages == 2
    for special in (VM_IO, VM_DONTEXPAND, VM_PFNMAP, VM_MIXEDMAP):
        plan = Plan(mm)
        plan.insert(base.with_flags(FLAGS | special))
        plan.insert(Vma(A + P, A + 2 * P, FLAGS | special, 8, file))
        assert len(plan.tree) == 2


@pytest.mark.conformance("VM-09")
def test_neighbours_of_different_origin_do_not_meet(p):
    put(p, 0)
    fault(p, 0)
    put(p, 2)
    fault(p, 2)
    assert anon(p, 0) != anon(p, 2)
    put(p, 1)
    assert layout(p) == [(0, 2), (2, 3)]


@pytest.mark.conformance("VM-10")
def test_one_neighbour_faulted(p):
    for page in (0, 2):
        put(p, page)
    fault(p, 2)
    origin = anon(p, 2)
    put(p, 1)
    assert layout(p) == [(0, 3)] and anon(p, 0) == origin


@pytest.mark.conformance("VM-11")
@pytest.mark.parametrize("faulted", [(0,), (2,), (0, 2), ()])
def test_mprotect_to_match(p, faulted):
    put(p, 0, 3)
    if len(faulted) == 2:
        fault(p, 0, 3)                          # of one origin
        p.mmap(A + P, P, PROT_READ, FIXED)      # the middle is new
    else:
        p.mprotect(A + P, P, PROT_READ)
        for page in faulted:
            fault(p, page)
    assert layout(p) == [(0, 1), (1, 2), (2, 3)]
    p.mprotect(A + P, P, RW)
    assert layout(p) == [(0, 3)]
    assert bool(anon(p, 0)[0]) == bool(faulted)


@pytest.mark.conformance("VM-12")
def test_a_forked_vma_takes_nothing_new_in(p):
    put(p, 0)
    fault(p, 0)
    child = forked(p)
    put(p, 1)
    assert layout(p) == [(0, 2)], "the parent's may"
    put(child, 1)
    assert layout(child) == [(0, 1), (1, 2)]
    child.mprotect(A, P, PROT_READ)
    child.mprotect(A, P, RW)
    assert layout(child) == [(0, 1), (1, 2)]


@pytest.mark.conformance("VM-15")
def test_soft_dirty_never_blocks_and_survives():
    mm = fake_map()
    plan = Plan(mm)
    plan.insert(Vma(A, A + P, FLAGS & ~VM_SOFTDIRTY))
    assert plan.insert(Vma(A + P, A + 2 * P, FLAGS)).vm_flags_word & VM_SOFTDIRTY
    plan.insert(Vma(A + 3 * P, A + 4 * P, FLAGS & ~VM_SOFTDIRTY))
    merged = plan.insert(Vma(A + 2 * P, A + 3 * P, FLAGS & ~VM_SOFTDIRTY))
    assert merged.pages == 4 and merged.vm_flags_word & VM_SOFTDIRTY


@pytest.mark.conformance("VM-24")
def test_fresh_memory_beside_what_was_moved(p):
    put(p, 0, 2)
    move(p, 0, 2, 10)
    assert p.vmas[0].pgoff == A // P + 10, "never faulted: as if it had been made there"
    put(p, 12)
    assert layout(p) == [(10, 13)]
    p.munmap(A, 100 * P)
    put(p, 0, 2)
    fault(p, 0)
    move(p, 0, 2, 10)
    assert p.vmas[0].pgoff == A // P
    put(p, 12)
    assert layout(p) == [(10, 12), (12, 13)]


@pytest.mark.conformance("VM-25")
def test_pieces_moved_away_and_back(p):
    put(p, 0, 9)
    fault(p, 0, 9)
    pages = set(p.mm.core.pages)
    move(p, 0, 3, 20)
    move(p, 6, 3, 30)
    assert layout(p) == [(3, 6), (20, 23), (30, 33)]
    move(p, 20, 3, 0)
    move(p, 30, 3, 6)
    assert layout(p) == [(0, 9)] and p.mm.core.pages == pages


@pytest.mark.conformance("VM-26")
def test_moved_between_two_origins(p):
    put(p, 0, 5)
    fault(p, 0)
    put(p, 10, 5)
    fault(p, 10)
    put(p, 20, 5)
    move(p, 20, 5, 5)
    assert layout(p) == [(0, 10), (10, 15)]


def test_a_copy_may_merge_with_its_source(p):
    put(p, 0, 4)
    move(p, 0, 2, 4)
    assert layout(p) == [(2, 6)]


def test_extending_up_to_the_next(p):
    put(p, 0, 2)
    put(p, 4, 2)
    fault(p, 4)

    def planner(plan):
        vma = plan.tree.at(A)
        plan.account(vma.vm_flags_word, 2)
        plan.charge_pages(2)
        return plan.extend(vma, A + 4 * P)

    assert p.mm.change(planner).pages == 6
    assert layout(p) == [(0, 6)] and anon(p, 0)[0]


# ---- modify ----


@pytest.mark.parametrize("first, last", [(0, 4), (0, 2), (2, 4), (1, 3)])
def test_modify_keeps_what_it_is_not_told(p, first, last):
    put(p, 0, 4)
    fault(p, 0, 4)
    origin = anon(p, 0)
    p.mm.change(lambda plan: plan.modify(A + first * P, A + last * P, name="x", flags=KEEP))
    named = [v for v in p.vmas if v.name == "x"]
    assert [((v.start - A) // P, (v.end - A) // P) for v in named] == [(first, last)]
    assert all(p.mm.core.anon_vma(v.start) == origin for v in p.vmas)
    p.mm.change(lambda plan: plan.modify(A + first * P, A + last * P, name=None))
    assert layout(p) == [(0, 4)]


def test_modify_refuses_holes(p):
    put(p, 0, 2)
    for start, end in ((A + P, A + 3 * P), (A + 5 * P, A + 6 * P), (A + P, A + P)):
        with pytest.raises(ValueError, match="no one VMA"):
            p.mm.change(lambda plan, s=start, e=end: plan.modify(s, e, name="x"))


def test_the_second_split_may_be_one_too_many(p):
    put(p, 0, 9)
    p.mm.settings.max_map_count = 2
    with pytest.raises(OSError, match="max_map_count") as caught:
        p.mprotect(A + 3 * P, 3 * P, PROT_READ)
    assert caught.value.errno == errno.ENOMEM
    assert layout(p) == [(0, 3), (3, 9)], "the first is done"


# ---- committing ----


def test_a_stale_plan_is_made_again(p):
    p.mm.core.stale = 3
    put(p, 0)
    assert layout(p) == [(0, 1)] and p.mm.core.commits == 4


def test_a_refused_charge_does_what_linux_has_done_by_then():
    mmu = FakeMmu(totalram=10)
    p = FakeProcess()
    p.mm = fake_map(mmu)
    for page in (0, 4, 8):
        p.mmap(A + page * P, 4 * P, PROT_READ, FIXED)
        p.mprotect(A + page * P, P, 0)
    with pytest.raises(OSError) as caught:
        p.mprotect(A, 12 * P, RW)
    assert caught.value.errno == errno.ENOMEM
    assert mmu.committed == p.mm.core.accounted() <= 10
    assert layout(p) == [(0, 9), (9, 12)] and p.vmas[0].prot == RW
    with pytest.raises(OSError):
        p.mmap(A, 30 * P, RW, FIXED)
    assert p.vmas[0].prot == RW and mmu.committed == p.mm.core.accounted()


def test_an_interrupted_call_is_done_or_not(p):
    """KeyboardInterrupt before each line of Python that a call runs: all or nothing."""
    import sys

    put(p, 0, 9)
    fault(p, 3, 3)
    finished = 0
    for at in range(0, 4000, 3):
        left = [at]

        def tracer(frame, event, arg, left=left):
            caller = frame
            while caller is not None:
                if "fake_core" in caller.f_code.co_filename:
                    return None                 # compiled in truth: no signal gets in
                caller = caller.f_back
            if event == "line":
                left[0] -= 1
                if left[0] < 0:
                    raise KeyboardInterrupt
            return tracer

        before = list(p.mm.core.tree)
        sys.settrace(tracer)
        try:
            p.mmap(A + 2 * P, 3 * P, PROT_READ, FIXED)
        except KeyboardInterrupt:
            done = list(p.mm.core.tree) != before
        else:
            done = True
            finished += 1
        finally:
            sys.settrace(None)
        assert [v for v, _, _ in p.mm.core.vmas] == list(p.mm.core.tree)
        assert layout(p) == ([(0, 2), (2, 5), (5, 9)] if done else [(0, 9)])
        assert p.mm.core.mmu.committed == p.mm.core.accounted()
        if done:
            put(p, 0, 9)
        if finished > 3:
            break
    assert finished > 3


def test_stacks_that_grew_are_taken_in(p):
    put(p, 8, 2)
    grown = [(A + 10 * P, A + 4 * P)]
    p.mm.core.sync = lambda: grown
    (vma,) = p.vmas
    assert (vma.start, vma.end, vma.pgoff) == (A + 4 * P, A + 10 * P, A // P + 4)


# ---- fork ----


@pytest.mark.conformance("FK-16")
def test_what_a_child_inherits(p):
    put(p, 0, 2)
    assert forked_tree(p.mm.tree) is p.mm.tree, "nothing differs: shared as it is"

    def planner(plan):
        plan.modify(A, A + P, flags=FLAGS | VM_LOCKED, name="mine")
        plan.set_def_flags(VM_LOCKED)
        plan.insert(Vma(A + 5 * P, A + 6 * P, FLAGS | VM_DONTCOPY))
        plan.insert(Vma(A + 7 * P, A + 8 * P, FLAGS | VM_WIPEONFORK))
        plan.deltas[:] = [2, 2, 0, 0, 1]

    p.mm.change(planner)
    fault(p, 0, 8)
    child = forked(p)
    assert layout(child) == [(0, 1), (1, 2), (7, 8)]
    assert child.vmas[0].name == "mine" and not any(v.locked for v in child.vmas)
    assert child.mm.tree.def_flags == 0 and child.mm.tree.brk == p.mm.tree.brk
    assert child.mm.core.counters[4] == 0
    assert p.vmas[0].locked and len(p.vmas) == 4
