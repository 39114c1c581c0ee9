"""prctl's options that concern memory, line by line of the catalogue."""

from __future__ import annotations

import errno

import pytest
from fake_pages import ANON, RW, SHARED, P, flags, refused, spans

from realmem import layout
from realmem.layout import MAP_FIXED


@pytest.mark.conformance("MM-59")
def test_names(p, base):
    def name(value, start=base, length=P):
        return p.prctl(layout.PR_SET_VMA, layout.PR_SET_VMA_ANON_NAME, start, length, value)

    p.mmap(base, 3 * P, RW, ANON | MAP_FIXED)
    p.mmap(base + 4 * P, P, RW, SHARED | MAP_FIXED)
    assert name("test", base + P) == 0
    assert [vma.name for vma in p.vmas[:3]] == [None, "test", None]
    name("")
    assert p.find_vma(base).name == ""
    name(None, length=3 * P)
    assert spans(p, base)[0] == (0, 3) and p.find_vma(base).name is None
    refused(errno.ENOMEM, name, "both", base, 5 * P)
    assert [vma.name for vma in p.vmas] == ["both", "both"]
    for bad in ("a[b", "a]b", "a`b", "a$b", "a\\b", "\n", "é", "x" * 80):
        refused(errno.EINVAL, name, bad)
    name("x" * 79)
    refused(errno.EINVAL, name, "x", base + 1)
    refused(errno.EINVAL, name, "x", base, -1)
    assert name("x", base + 64 * P, 0) == 0
    with pytest.raises(TypeError):
        name(b"bytes")
    refused(errno.EINVAL, p.prctl, layout.PR_SET_VMA, 1, base, P, "x")


def test_thp_disable(p):
    ask = layout.PR_GET_THP_DISABLE
    assert p.prctl(ask) == 0
    for args, number in [((1,), 1), ((1, 2), 3), ((0,), 0)]:
        assert p.prctl(layout.PR_SET_THP_DISABLE, *args) == 0
        assert p.prctl(ask) == number
    for args in [(0, 2), (1, 1), (1, 4), (1, 0, 1), (1, 0, 0, 1)]:
        refused(errno.EINVAL, p.prctl, layout.PR_SET_THP_DISABLE, *args)
    refused(errno.EINVAL, p.prctl, ask, 1)
    refused(errno.EINVAL, p.prctl, 9999)
    with pytest.raises(TypeError):
        p.prctl(ask, 0, 0, 0, 0, 0)


@pytest.mark.conformance("VM-30")
def test_memory_merge(p, base):
    p.mmap(base, P, RW, ANON | MAP_FIXED)
    p.mmap(base + 2 * P, P, RW, SHARED | MAP_FIXED)
    assert p.prctl(layout.PR_SET_MEMORY_MERGE, 1) == 0 == p.prctl(layout.PR_SET_MEMORY_MERGE, 1)
    assert p.prctl(layout.PR_GET_MEMORY_MERGE) == 1
    assert "mg" in flags(p, base) and "mg" not in flags(p, base + 2 * P)
    p.mmap(base + P, P, RW, ANON | MAP_FIXED)
    assert spans(p, base) == [(0, 2), (2, 3)]
    p.mmap(base + 8 * P, P, RW, SHARED | MAP_FIXED)
    assert "mg" not in flags(p, base + 8 * P)
    p.mlockall(2)
    p.munlockall()
    assert p.prctl(layout.PR_GET_MEMORY_MERGE) == 1
    assert p.prctl(layout.PR_SET_MEMORY_MERGE, 0) == 0 == p.prctl(layout.PR_GET_MEMORY_MERGE)
    assert "mg" not in flags(p, base)
    refused(errno.EINVAL, p.prctl, layout.PR_SET_MEMORY_MERGE, 1, 1)


@pytest.mark.conformance("FK-23")
def test_memory_merge_is_inherited(real):
    p = real
    p.prctl(layout.PR_SET_MEMORY_MERGE, 1)
    p.prctl(layout.PR_SET_THP_DISABLE, 1)
    child = p.fork()
    assert child.prctl(layout.PR_GET_MEMORY_MERGE) == child.prctl(layout.PR_GET_THP_DISABLE) == 1
