"""The persistent tree of VMAs against a plain list; its cost is counted in nodes, never timed."""

from __future__ import annotations

import random
from bisect import bisect_left
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from realmem.layout import PAGE_SIZE
from realmem.mm import btree
from realmem.mm.btree import FAN_LOW, FAN_OUT, Node
from realmem.mm.tree import STACK_GUARD_GAP, VmaTree
from realmem.mm.vma import VM_GROWSDOWN, VM_READ, Vma

P = PAGE_SIZE


def vma_at(page, pages=1, flags=VM_READ):
    return Vma(page * P, (page + pages) * P, flags)


def check(tree):
    """Recount what the nodes say of themselves; give the height."""

    def visit(node, top):
        assert node.count and len(node.items) <= FAN_OUT
        assert top or len(node.items) >= FAN_LOW
        if node.leaf:
            spans = [(v.start, v.end) for v in node.items]
            height, count = 1, len(spans)
            inner = 0
        else:
            below = [visit(item, False) for item in node.items]
            assert len({b[0] for b in below}) == 1
            height, count = below[0][0] + 1, sum(b[1] for b in below)
            spans = [b[2] for b in below]
            inner = max(b[3] for b in below)
        assert node.starts == tuple(s for s, _ in spans)
        assert node.ends == tuple(e for _, e in spans)
        gaps = [b[0] - a[1] for a, b in pairwise(spans)]
        assert min(gaps, default=0) >= 0
        gap = max([inner, *gaps])
        assert (node.count, node.gap) == (count, gap)
        return height, count, (spans[0][0], spans[-1][1]), gap

    if tree.root is None:
        return 0
    return visit(tree.root, True)[0]


def model_gap_below(vmas, length, low, high, guard):
    """One page after the other, from the top: does it fit?"""
    gaps = []
    edge = low
    for vma in vmas:
        gaps.append((edge, vma))
        edge = max(edge, vma.end)
    while True:
        found = None
        starts = [low] + [max(v.end, low) for v in vmas if v.end < high]
        for start in reversed(starts):
            above = [v for v in vmas if v.end > start]
            if any(v.start < start for v in above):
                continue
            end = min([v.start for v in above[:1]] + [high])
            if end - start >= length:
                found = end
                break
        if found is None:
            return None
        above = next((v for v in vmas if v.end > found), None)
        if above is None or not above.vm_flags_word & VM_GROWSDOWN:
            return found - length
        edge = max(above.start - guard, 0)
        if edge >= found:
            return found - length
        high = edge


edits = st.lists(
    st.tuples(
        st.integers(0, 400),                # from this page
        st.integers(0, 60),                 # replace what starts in so many
        st.lists(st.integers(1, 3), max_size=40),
    ),
    max_size=12,
)


@given(edits, st.randoms(use_true_random=False))
def test_tree_against_a_list(steps, rng):
    tree, model = VmaTree(), []
    for page, width, sizes in steps:
        lo, hi = page * P, (page + width) * P
        i, j = (bisect_left([v.start for v in model], edge) for edge in (lo, hi))
        # New ones fill the room between the neighbours, more or less.
        edge = model[i - 1].end // P if i else 0
        edge = max(edge, page)
        limit = model[j].start // P if j < len(model) else 1 << 30
        new = []
        for size in sizes:
            if edge + size > limit:
                break
            new.append(vma_at(edge, size))
            edge += size + rng.choice([0, 0, 1, 5])
        before = list(tree)
        old, tree = tree, tree.replace(lo, max(hi, lo), new)
        model[i:j] = new
        assert list(old) == before          # nobody else's tree changed
        assert list(tree) == model and len(tree) == len(model)
        check(tree)
    top = model[-1].end // P + 2 if model else 5
    for page in {0, top, *(rng.randrange(top) for _ in range(30))}:
        addr = page * P + rng.choice([0, 0, 7])
        assert tree.find(addr) == next((v for v in model if v.end > addr), None)
        assert tree.prev(addr) == next((v for v in reversed(model) if v.start < addr), None)
        assert tree.at(addr) == next((v for v in model if v.start <= addr < v.end), None)
        hi = addr + rng.randrange(1, 80) * P
        assert tree.range(addr, hi) == [v for v in model if addr <= v.start < hi]
        inside = [v for v in model if v.end > addr and v.start < hi]
        assert tree.span(addr, hi) == inside and tree.overlaps(addr, hi) == bool(inside)


layouts = st.lists(
    st.tuples(st.integers(0, 6), st.integers(1, 3), st.booleans()), max_size=120
)


def laid_out(gaps):
    vmas, page = [], 0
    for gap, size, grows in gaps:
        vmas.append(vma_at(page + gap, size, VM_READ | (VM_GROWSDOWN if grows else 0)))
        page += gap + size
    return vmas, page + 6


@given(layouts, st.integers(1, 8), st.integers(0, 4), st.data())
def test_room_is_the_highest_or_the_lowest(gaps, pages, guard, data):
    vmas, top = laid_out(gaps)
    tree = VmaTree.of(vmas)
    low = data.draw(st.integers(0, top)) * P
    high = data.draw(st.integers(0, top)) * P
    length, guard = pages * P, guard * P
    assert tree.gap_below(length, low, high, guard) == model_gap_below(
        vmas, length, low, high, guard
    )
    fits = [
        start
        for start in range(low, high - length + 1, P)
        if not any(v.start < start + length and v.end > start for v in vmas)
    ]
    assert tree.gap_below(length, low, high, 0) == (fits[-1] if fits else None)
    assert tree.gap_above(length, low, high, 0) == (fits[0] if fits else None)


def test_a_stack_keeps_its_guard_gap_free():
    stack = vma_at(1000, 2, VM_READ | VM_GROWSDOWN)
    tree = VmaTree.of([stack])
    assert tree.gap_below(P, 0, stack.end) == stack.start - STACK_GUARD_GAP - P
    assert tree.gap_above(P, 900 * P, 2000 * P) == stack.end


def test_a_tree_of_one_page_each():
    tree = VmaTree.of([vma_at(2 * i) for i in range(5000)])
    assert check(tree) == 3
    assert tree.gap_below(P, 0, 9999 * P) == 9997 * P
    assert tree.gap_below(2 * P, 0, 9999 * P) is None
    for i in range(5000):
        tree = tree.replace(2 * i * P, (2 * i + 1) * P, [])
    assert tree.root is None and len(tree) == 0


def test_a_change_costs_one_path(monkeypatch):
    """From 10 to 100,000 VMAs: as many new nodes as levels, and a split or two."""
    made = []

    class Counting(Node):
        def __new__(cls, *args):
            made.append(cls)
            return super().__new__(cls)

    monkeypatch.setattr(btree, "Node", Counting)
    rng = random.Random(4)
    for n in (10, 1_000, 100_000):
        tree = VmaTree.of([vma_at(2 * i) for i in range(n)])
        height = check(tree)
        for _ in range(200):
            i = rng.randrange(n - 1)
            made.clear()
            more = tree.replace((2 * i + 1) * P, (2 * i + 2) * P, [vma_at(2 * i + 1)])
            assert len(more) == n + 1
            assert len(made) <= 2 * height + 1 and height <= 4
            made.clear()
            less = more.replace((2 * i + 1) * P, (2 * i + 2) * P, [])
            assert len(less) == n and len(made) <= 2 * height + 1
