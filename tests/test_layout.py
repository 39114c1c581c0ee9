"""Sizes, orders and flag values."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

import realmem as rm
from realmem.layout import PAGE_SIZE, format_size, parse_size


@given(st.integers(0, 1 << 50))
def test_a_size_is_its_own_bytes(size):
    assert parse_size(size) == size
    assert parse_size(str(size)) == size


@given(st.integers(0, 4000), st.sampled_from("KMGT"), st.sampled_from(["", "B", "iB", "ib", "b"]))
def test_units_are_binary_in_any_case(number, unit, suffix):
    expected = number << {"K": 10, "M": 20, "G": 30, "T": 40}[unit]
    assert parse_size(f"{number}{unit}{suffix}") == expected
    assert parse_size(f" {number}{unit.lower()}{suffix} ") == expected


@given(st.integers(1, 1 << 44).map(lambda n: n * 1024))
def test_format_size_is_read_back_when_exact(size):
    text = format_size(size)
    if "." not in text:
        assert parse_size(text) == size


@pytest.mark.parametrize("bad", ["", "M", "1.5G", "-1", "64Q", "1 2"])
def test_malformed_sizes(bad):
    with pytest.raises(ValueError, match="size"):
        parse_size(bad)


@pytest.mark.parametrize("bad", [None, 1.0, True, b"64K", [1]])
def test_sizes_of_wrong_type(bad):
    with pytest.raises(TypeError):
        parse_size(bad)


@given(st.integers(1, 1 << 40))
@pytest.mark.conformance("BD-10")
def test_get_order_gives_the_smallest_block(size):
    order = rm.get_order(size)
    assert PAGE_SIZE << order >= size
    assert order == 0 or PAGE_SIZE << (order - 1) < size


@pytest.mark.conformance("GF-01")
def test_gfp_masks_decompose_as_linux_says():
    gfp = rm.GFP
    assert gfp.KERNEL == gfp.DIRECT_RECLAIM | gfp.KSWAPD_RECLAIM | gfp.IO | gfp.FS
    assert gfp.ATOMIC == gfp.HIGH | gfp.KSWAPD_RECLAIM
    assert gfp.KSWAPD_RECLAIM in gfp.NOWAIT
    assert gfp.DIRECT_RECLAIM not in gfp.NOWAIT
    assert not gfp.NOIO & (gfp.IO | gfp.FS)
    assert gfp.IO in gfp.NOFS
    assert gfp.FS not in gfp.NOFS
