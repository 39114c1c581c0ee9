"""What callers may not give: refused by name, before anything happens, in every public call."""

from __future__ import annotations

import errno
import operator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import realmem as rm
from realmem import bench
from realmem.arguments import as_bool, as_int, as_register, as_window

RW = rm.PROT_READ | rm.PROT_WRITE
ANON = rm.MAP_PRIVATE | rm.MAP_ANONYMOUS
WRONG = ["x", b"x", 0.5, 1.0, None, [1], True, print]
WIDE = [1 << 64, 1 << 70, -(1 << 63) - 1]


def kind(value):
    """Name a parameter; no address in it, which would differ between the workers of one run."""
    if isinstance(value, dict):
        return " ".join(f"{name}={kind(of)}" for name, of in value.items())
    return getattr(value, "__name__", None) or str(value)


@pytest.fixture(scope="module")
def machine():
    with rm.Machine(nodes=1, memory="16M", window="1G") as machine:
        yield machine


@pytest.fixture
def process(machine, process):
    """Nothing may have happened to it."""
    before = (process.vmas, process.rss, process.children, sorted(machine.processes))
    yield process
    assert (process.vmas, process.rss, process.children, sorted(machine.processes)) == before


# The argument is the one that WRONG and WIDE stand for; what may be None says so.
CALLS = {
    "mmap addr": (lambda p, x: p.mmap(x, 4096, RW, ANON), {None}),
    "mmap length": (lambda p, x: p.mmap(None, x, RW, ANON), ()),
    "mmap prot": (lambda p, x: p.mmap(None, 4096, x, ANON), ()),
    "mmap flags": (lambda p, x: p.mmap(None, 4096, RW, x), ()),
    "mmap offset": (lambda p, x: p.mmap(None, 4096, RW, ANON, None, x), ()),
    "munmap addr": (lambda p, x: p.munmap(x, 4096), ()),
    "munmap length": (lambda p, x: p.munmap(0, x), ()),
    "view addr": (lambda p, x: p.view(x, 1), ()),
    "view length": (lambda p, x: p.view(p.mm.low, x), ()),
    "host_address": (lambda p, x: p.host_address(x), ()),
    "read addr": (lambda p, x: p.read(x, 1), ()),
    "read n": (lambda p, x: p.read(p.mm.low, x), ()),
    "write addr": (lambda p, x: p.write(x, b"1"), ()),
    "touch addr": (lambda p, x: p.touch(x, 1), ()),
    "touch length": (lambda p, x: p.touch(p.mm.low, x), ()),
    "walk": (lambda p, x: p.walk(x), ()),
    "find_vma": (lambda p, x: p.find_vma(x), ()),
    "wait": (lambda p, x: p.wait(x), ()),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("wrong", WRONG, ids=kind)
def test_wrong_types(process, name, wrong):
    call, allowed = CALLS[name]
    if any(wrong is value for value in allowed):
        pytest.skip("allowed")
    with pytest.raises(TypeError, match="must be an int, not "):
        call(process, wrong)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("wide", WIDE)
def test_more_than_a_register_holds(process, name, wide):
    with pytest.raises(ValueError, match=r"must be within .*: -?\d+$"):
        CALLS[name][0](process, wide)


@pytest.mark.parametrize("data", ["text", 5, None, [1, 2]], ids=kind)
def test_what_cannot_be_written(process, data):
    with pytest.raises(TypeError):
        process.write(process.mm.low, data)


def test_what_fits_a_register_is_the_calls_to_judge(machine):
    """Negative numbers wrap around, as C's do; unknown bits of prot and flags say nothing."""
    p = machine.spawn()
    for length in (-1, -4096, -(1 << 63), 1 << 63):
        with pytest.raises(OSError) as caught:
            p.mmap(None, length, RW, ANON)
        assert caught.value.errno == errno.ENOMEM
        with pytest.raises(OSError) as caught:
            p.munmap(0, length)
        assert caught.value.errno == errno.EINVAL
    for prot, flags in ((1 << 63 | RW, ANON), (RW, ANON | 1 << 40), (RW, ANON - (1 << 62))):
        a = p.mmap(-4096, 4096, prot, flags)
        assert p.find_vma(a).prot == RW
        p.munmap(a, 4096)
    with pytest.raises(OSError) as caught:
        p.mmap(None, 4096, RW, ANON, None, -1)
    assert caught.value.errno == errno.EINVAL
    a = p.mmap(np.uint64(0), np.int32(4096), np.int64(RW), np.int16(ANON))
    p.write(np.uint64(a), b"ab")
    assert p.read(np.int64(a), np.int8(2)) == b"ab"
    p.exit()


@pytest.mark.parametrize(
    ("error", "options"),
    [
        *((TypeError, {"uid": x}) for x in WRONG),
        *((TypeError, {"node": x}) for x in WRONG if x is not None),
        *((TypeError, {"name": x}) for x in (5, b"x", None, ["a"])),
        *((ValueError, {"uid": x}) for x in (-1, (1 << 32) - 1, 1 << 70)),
        *((ValueError, {"node": x}) for x in (-1, 1, 1 << 70)),
    ],
    ids=kind,
)
def test_spawn(machine, error, options):
    before = sorted(machine.processes)
    with pytest.raises(error, match=next(iter(options))):
        machine.spawn(**options)
    assert sorted(machine.processes) == before


def test_names_of_children_and_codes(process):
    for name in (5, b"x", ["a"]):
        with pytest.raises(TypeError, match="name must be a str"):
            process.fork(name=name)
    for code in ("0", 1.5, None):
        with pytest.raises(TypeError, match="code must be an int"):
            process.exit(code)
    with pytest.raises(ChildProcessError):
        process.wait(1 << 30)
    for pid in (1 << 31, -(1 << 31) - 1):
        with pytest.raises(ValueError, match="pid must be within"):
            process.wait(pid)


@pytest.mark.parametrize(
    ("error", "options"),
    [
        *((TypeError, {"seed": x}) for x in WRONG),
        *((TypeError, {"host_vmas": x}) for x in WRONG if x is not None),
        *((TypeError, {"cpus": x}) for x in WRONG if x is not None),
        *((TypeError, {"debug": x}) for x in WRONG),
        *((TypeError, {"window": x}) for x in (0.5, None, True, b"1G", [1])),
        *((TypeError, {"backing": x}) for x in (5, None, b"4K", ["4K"])),
        *((TypeError, {flag: x}) for flag in ("poison", "page_owner", "mlock")
          for x in ("yes", 0.5, 2, -1, None, [])),
        *((TypeError, {"progress": x}) for x in (True, "bar", 5)),
        *((TypeError, {"nodes": [rm.NodeSpec("4M", host_node=x)]}) for x in ("0", 0.0, True)),
        (ValueError, {"host_vmas": -5}), (ValueError, {"host_vmas": 0}),
        *((ValueError, {"window": x}) for x in ("3G", "512M", 5, "64T", "1 window", -1)),
        (ValueError, {"cpus": 8193}), (ValueError, {"debug": 3}), (ValueError, {"backing": "5K"}),
    ],
    ids=kind,
)
def test_machines(error, options):
    name = next(iter(options)) if "nodes" not in options else "host_node"
    with pytest.raises(error, match=name):
        rm.Machine(**{"nodes": 1, "memory": "4M", **options})


@pytest.mark.parametrize(
    ("error", "options"),
    [
        *((TypeError, {"threads": x}) for x in WRONG if x is not None),
        *((TypeError, {"seed": x}) for x in WRONG),
        *((TypeError, {"quick": x}) for x in ("yes", 2, None)),
        (TypeError, {"progress": 5}),
        (ValueError, {"threads": 0}), (ValueError, {"seed": -1}), (ValueError, {"pages": ["3K"]}),
    ],
    ids=kind,
)
def test_bench_options(error, options):
    with pytest.raises(error, match="page size" if "pages" in options else next(iter(options))):
        bench.Options(**options)


def test_bench_names():
    with pytest.raises(TypeError, match="names must be a sequence"):
        bench.run("latency")
    with pytest.raises(KeyError, match="nothing"):
        bench.run(["nothing"])


@given(st.integers(-(1 << 65), 1 << 65))
def test_registers_wrap_as_in_c(number):
    if -(1 << 63) <= number < 1 << 64:
        assert as_register(number, "n") == number & ((1 << 64) - 1)
    else:
        with pytest.raises(ValueError, match="n must be within"):
            as_register(number, "n")


@given(st.integers(-10, 10), st.none() | st.integers(-9, 9), st.none() | st.integers(-9, 9))
def test_bounds(number, low, high):
    if (low is None or number >= low) and (high is None or number <= high):
        assert as_int(number, "n", low, high) == number
    else:
        with pytest.raises(ValueError, match=rf"^n must be .*: {number}$"):
            as_int(number, "n", low, high)


@pytest.mark.parametrize("make", [int, np.int8, np.uint64, rm.GFP, lambda n: np.array(n)])
def test_every_integer_type_is_one(make):
    found = as_int(make(5), "n", 0, 9)
    assert (type(found), found) == (int, operator.index(make(5)))


def test_switches_and_windows():
    assert [as_bool(value, "b") for value in (True, False, 1, 0)] == [True, False, True, False]
    assert as_window("1G") == 1 << 30 and as_window(1 << 45) == 1 << 45
