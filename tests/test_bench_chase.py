"""A chase is one cycle through every line, whatever its size, stride and seed."""

import ctypes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from realmem._bench import chase


def memory(size):
    """Give zeroed bytes and their address, aligned to 64."""
    raw = ctypes.create_string_buffer(size + 64)
    return raw, (ctypes.addressof(raw) + 63) & ~63


@given(lines=st.integers(2, 600), stride=st.sampled_from([8, 24, 64, 128, 4096]),
       extra=st.integers(0, 7), seed=st.integers(0, 2**64 - 1))
def test_one_cycle_through_every_line(lines, stride, extra, seed):
    size = lines * stride + min(extra, stride - 1)
    _keep, base = memory(size)
    assert chase.build(base, size, stride, seed) == lines
    seen = chase.walk(base, lines)
    assert sorted(seen) == [base + i * stride for i in range(lines)]
    # Nothing but the first word of each line is written.
    after = bytearray(ctypes.string_at(base, size))
    for i in range(lines):
        after[i * stride : i * stride + 8] = bytes(8)
    assert not any(after)


@given(st.integers(2, 100), st.integers(0, 2**64 - 1), st.integers(0, 50))
def test_chase_follows_the_cycle(lines, seed, loads):
    _keep, base = memory(lines * 64)
    chase.build(base, lines * 64, 64, seed)
    spent, reached = chase.chase(base, loads)
    steps = -(-loads // 16) * 16
    assert reached == chase.walk(base, lines)[steps % lines]
    assert spent >= 0


def test_seed_decides_the_order():
    orders = set()
    for seed in (1, 2, 1):
        _keep, base = memory(64 * 64)
        chase.build(base, 64 * 64, 64, seed)
        orders.add(tuple(address - base for address in chase.walk(base, 64)))
    assert len(orders) == 2


def test_every_cycle_is_as_likely():
    counts = {}
    _keep, base = memory(4 * 64)
    for seed in range(6000):
        chase.build(base, 4 * 64, 64, seed)
        order = tuple((address - base) // 64 for address in chase.walk(base, 4))
        counts[order] = counts.get(order, 0) + 1
    assert len(counts) == 6                         # (4 - 1)! cycles
    assert all(850 < count < 1150 for count in counts.values())


@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [(0, 64, 64), (0, 0, 64), (0, 640, 0), (0, 640, 12), (4, 640, 64), (0, 2**39, 64)],
)
def test_build_refuses(offset, size, stride):
    _keep, base = memory(1024)
    with pytest.raises(ValueError, match="a chase needs"):
        chase.build(base + offset, size, stride, 0)


def test_walk_notices_what_is_no_cycle():
    _keep, base = memory(64)
    ctypes.c_void_p.from_address(base).value = base + 8
    ctypes.c_void_p.from_address(base + 8).value = base + 8
    with pytest.raises(ValueError, match="no cycle"):
        chase.walk(base, 100)
