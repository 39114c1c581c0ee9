"""The memory under a measurement: where it lies and of what, by the kernel's own account."""

import ctypes
import sys
from pathlib import Path

import pytest

from realmem._core import pool as core
from realmem.bench import memory
from realmem.bench.places import places
from realmem.bench.results import UNVERIFIED
from realmem.errors import HostError
from realmem.host import limits

NODE = places().memory[0]


def mapped(address):
    """Tell whether anything is mapped at an address."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    spans = [line.split()[0].split("-") for line in lines]
    return any(int(a, 16) <= address < int(b, 16) for a, b in spans)


@pytest.mark.parametrize("pages", memory.default_pages())
def test_buffer(pages):
    size = 6 << 20
    with memory.buffer(NODE, size, pages) as area:
        assert (area.size, area.pages) == (size, pages)
        assert area.address % memory.PAGE_BYTES[pages] == 0
        ctypes.memset(area.address, 7, size)
        assert ctypes.string_at(area.address + size - 1, 1) == b"\x07"
        wrong, refused = core.misplaced(area.address, size, 4096, NODE)
        if refused or "mbind" in area.source:
            assert UNVERIFIED in area.stamps
        else:
            assert wrong == 0 and area.stamps == ()
        huge = memory.huge_bytes(area.address, size)
        if pages == "4K":
            assert huge == 0 or "against our will" in area.source
        else:
            assert huge == size or "% of it in huge pages" in area.source
        where = area.address
    assert not mapped(where)


def test_nothing_is_left_when_the_body_fails():
    with pytest.raises(KeyError), memory.buffer(NODE, 1 << 20, "4K") as area:
        where = area.address
        raise KeyError
    assert not mapped(where)


def test_too_much_is_refused():
    with pytest.raises(HostError, match="ask for less"), memory.buffer(NODE, 1 << 44, "4K"):
        pass


def test_size_is_halved_until_the_host_has_it(monkeypatch):
    monkeypatch.setattr(limits, "available_memory", lambda root="/": 5 << 20)
    with memory.buffer(NODE, 16 << 20, "4K", least=1 << 20) as area:
        assert area.size == 2 << 20
    with pytest.raises(HostError), memory.buffer(NODE, 16 << 20, "4K", least=4 << 20):
        pass


def test_missing_huge_pages_are_named():
    if memory.backing_for("1G", 1 << 30, NODE):
        pytest.skip("this host has huge pages of 1G reserved")
    with pytest.raises(HostError, match="1G"), memory.buffer(NODE, 1 << 30, "1G"):
        pass


CODE = """
from realmem.bench import memory
with memory.buffer({node}, 4 << 20, "{pages}") as area:
    print(area.stamps, area.source)
"""


@pytest.mark.parametrize("pages", memory.default_pages())
def test_a_container_that_refuses_means_unverified(refusing, pages):
    code = CODE.format(node=NODE, pages=pages)
    done = refusing([sys.executable, "-c", code])
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("('unverified',)")
    assert "EPERM" in done.stdout


def test_buffers_do_not_leak_descriptors(python):
    code = """
import os
from realmem.bench import memory
for turn in range(3):
    with memory.buffer(NODE, 1 << 20, "4K"):
        pass
    count = len(os.listdir("/proc/self/fd"))
    first = count if turn == 0 else first
print(count - first)
"""
    done = python(code.replace("NODE", str(NODE)))
    assert done.stdout == "0\n", done.stderr
