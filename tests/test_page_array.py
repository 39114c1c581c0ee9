"""PageArray: a sequence of pages, and a read-only array of their numbers."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence

import numpy as np
import pytest

import realmem as rm


@pytest.fixture(scope="module")
def machine() -> Iterator[rm.Machine]:
    with rm.Machine(nodes=1, memory="16M") as machine:
        yield machine
        machine.check()


@pytest.fixture
def pages(machine: rm.Machine) -> Iterator[Sequence[rm.Page]]:
    pages = machine.alloc_pages_bulk(rm.GFP_KERNEL, 12)
    yield pages
    machine.free_pages_bulk(pages)


def test_it_is_a_sequence(pages):
    assert isinstance(pages, Sequence)
    everything = list(pages)
    assert len(pages) == len(everything) == 12
    assert [page.pfn for page in everything] == pages.pfns.tolist()
    assert pages[0] == everything[0] and pages[-1] == everything[-1]
    assert everything[3] in pages and pages.index(everything[3]) == 3
    assert pages.count(everything[3]) == 1 and list(reversed(pages)) == everything[::-1]
    with pytest.raises(ValueError, match="not in list"):
        pages.index(everything[3], 4)
    for part in (slice(2, 5), slice(None), slice(None, None, -1), slice(10, 2, -3), slice(5, 5),
                 slice(-100, 100, 5)):
        assert list(pages[part]) == everything[part]
        assert pages[part] == everything[part]
    assert pages == pages[:] and pages != pages[1:] and pages != pages[::-1]


@pytest.mark.parametrize("index", [12, -13, 2**70, -(2**70)])
def test_indices_outside(pages, index):
    with pytest.raises(IndexError):
        pages[index]


@pytest.mark.parametrize("index", ["0", 0.0, None])
def test_indices_of_other_types(pages, index):
    with pytest.raises(TypeError):
        pages[index]


def test_the_numbers_cannot_be_written(pages):
    """What is freed by an array was allocated by it."""
    pfns = pages.pfns
    assert pfns.dtype == np.uint64
    with pytest.raises(ValueError, match="read-only"):
        pfns[0] = 1
    with pytest.raises(ValueError, match="WRITEABLE"):
        pfns.flags.writeable = True
    with pytest.raises(TypeError):
        memoryview(pages)[0] = 1
    with pytest.raises((BufferError, TypeError, ValueError)):
        np.frombuffer(pages, dtype=np.uint64)[0] = 1
    with pytest.raises(AttributeError):
        pages.pfns = pfns


def test_the_numbers_outlive_the_array(machine):
    pages = machine.alloc_pages_bulk(rm.GFP_KERNEL, 1000)
    pfns = pages.pfns
    expected = [page.pfn for page in pages]
    machine.free_pages_bulk(pages)
    del pages
    gc.collect()
    machine.free_pages_bulk(machine.alloc_pages_bulk(rm.GFP_KERNEL, 1000)[::-1])
    assert pfns.tolist() == expected


def test_none(machine):
    none = machine.alloc_pages_bulk(rm.GFP_KERNEL, 0)
    assert len(none) == 0 and list(none) == [] and none.pfns.shape == (0,)
    assert none == [] and none[:] == none
    machine.free_pages_bulk(none)


def test_of_two_machines(machine, pages):
    with rm.Machine(nodes=1, memory="16M") as other:
        theirs = other.alloc_pages_bulk(rm.GFP_KERNEL, 12)
        assert theirs != pages or theirs.pfns.tolist() != pages.pfns.tolist()
        with pytest.raises(rm.AllocatorError):
            machine.free_pages_bulk(theirs)


def test_equal_numbers_on_two_machines_are_other_pages():
    with rm.Machine(memory="16M") as one, rm.Machine(memory="16M") as two:
        a = one.alloc_pages_bulk(rm.GFP_KERNEL, 3)
        b = two.alloc_pages_bulk(rm.GFP_KERNEL, 3)
        assert a.pfns.tolist() == b.pfns.tolist()
        assert a != b
