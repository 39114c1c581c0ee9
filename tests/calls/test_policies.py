"""
How a memory policy of a range splits and merges VMAs: what mbind's plan will ask for.

``bind`` does to the VMAs of a range what mm/mempolicy.c:do_mbind() => mbind_range() does.
"""

from __future__ import annotations

import itertools

import pytest
from fake_pages import FIXED, RW, P, as_advised, spans
from hypothesis import given
from hypothesis import strategies as st

from realmem.layout import MAP_ANONYMOUS, MAP_PRIVATE

PAGES = 12


def policy(*nodes):
    """Give a policy that equals others of the same nodes, and is none of them."""
    return ("bind", frozenset(nodes)) if nodes else None


def bind(p, start, pages, new):
    end = start + pages * P

    def planner(plan):
        at = start
        while at < end:
            vma = plan.find(at)
            if vma.policy != new:           # Linux leaves alone what has it already
                vma = plan.modify(at, min(vma.end, end), policy=new)
            at = vma.end

    p.mm.change(planner)


@pytest.fixture
def six(p, base):
    p.mmap(base, 6 * P, RW, FIXED)
    return p


@pytest.mark.conformance("VM-16")
def test_the_default_policy_cuts_another(six, base):
    bind(six, base, 4, policy(0))
    bind(six, base + 2 * P, 2, None)
    assert spans(six, base, "policy") == [(0, 2, policy(0)), (2, 6, None)]


@pytest.mark.conformance("VM-17")
def test_the_same_policy_beside_it(six, base):
    bind(six, base, 2, policy(0))
    bind(six, base + 2 * P, 2, policy(0))
    assert spans(six, base, "policy") == [(0, 4, policy(0)), (4, 6, None)]


@pytest.mark.conformance("VM-18")
def test_the_same_policy_on_both_sides(six, base):
    bind(six, base, 2, policy(0, 1))
    bind(six, base + 4 * P, 2, policy(1, 0))
    assert len(six.vmas) == 3
    bind(six, base + 2 * P, 2, policy(0, 1))
    assert spans(six, base, "policy") == [(0, 6, policy(0, 1))]


@pytest.mark.conformance("VM-20")
def test_the_default_policy_over_all(six, base):
    bind(six, base + 2 * P, 2, policy(1))
    assert spans(six, base) == [(0, 2), (2, 4), (4, 6)]
    bind(six, base, 6, None)
    assert spans(six, base, "policy") == [(0, 6, None)]


def test_another_policy_stays_apart(six, base):
    bind(six, base, 3, policy(0))
    bind(six, base + 3 * P, 3, policy(1))
    assert spans(six, base, "policy") == [(0, 3, policy(0)), (3, 6, policy(1))]


def test_a_child_and_a_moved_range_keep_it(real):
    p = real
    a = p.mmap(None, 4 * P, RW, MAP_PRIVATE | MAP_ANONYMOUS)
    bind(p, a, 4, policy(1))
    b = p.mremap(a, 4 * P, 8 * P, 1)
    child = p.fork()
    for one in (p, child):
        assert one.find_vma(b).policy == policy(1)
    assert f"{b:012x} default" not in p.numa_maps()


@pytest.fixture(scope="module", params=["model", "real"])
def arena(request):
    with as_advised(request.param) as process:
        yield process


NODES = st.sets(st.integers(0, 2), max_size=2)
BINDS = st.lists(st.tuples(st.integers(0, PAGES - 1), st.integers(1, PAGES), NODES), max_size=12)


@given(binds=BINDS, touched=st.booleans())
def test_vmas_are_the_runs_of_equal_policies(arena, binds, touched):
    """Whatever is bound in whatever order: all pages are of one origin, so only policies part."""
    p, base = arena, arena.mm.low + (1 << 28)
    p.mmap(base, PAGES * P, RW, FIXED)
    if touched:
        p.touch(base, PAGES * P, True)
    pages = [None] * PAGES
    for first, count, nodes in binds:
        count = min(count, PAGES - first)
        bind(p, base + first * P, count, policy(*nodes))
        pages[first:first + count] = [policy(*nodes)] * count
        runs, at = [], 0
        for key, group in itertools.groupby(pages):
            n = len(list(group))
            runs.append((at, at + n, key))
            at += n
        assert spans(p, base, "policy") == runs
    assert p.rss == (PAGES if touched else 0)
    p.munmap(base, PAGES * P)
