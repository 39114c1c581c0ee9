"""What a fault counts, whether raw or through the software MMU."""

from __future__ import annotations

import pytest

COUNTED = """
from contextlib import contextmanager

machine = Machine(nodes=1, memory="32M", zones={"DMA": 0, "DMA32": "4G"})
p = machine.spawn()
addr = p.mmap(None, 1 << 21, RW, ANON)
ways = {
    "raw": (lambda at: array(p, at, 8).__setitem__(0, 7), lambda at: int(array(p, at, 8)[0])),
    "soft": (lambda at: p.write(at, b"7"), lambda at: p.read(at, 1)),
}
store, load = ways[WAY]
base = addr if addr & 0x1FFFFF < 0x100000 else (addr | 0x1FFFFF) + 1    # 1 MiB under one table
store(base)             # the tables are there from now on

@contextmanager
def counted():
    moved = {}
    before, rss, flt = machine.vmstat.snapshot(), p.rss, p.min_flt
    yield moved
    after = machine.vmstat.snapshot()
    moved.update({name: after[name] - before[name] for name in after
                  if after[name] != before[name] and not name.startswith(("nr_free", "nr_dirty"))})
    moved["rss"], moved["min_flt"] = p.rss - rss, p.min_flt - flt
"""


def counting(way):
    """Give code that has a process, `store`, `load` and `counted()` in scope."""
    return f"WAY = {way!r}\n" + COUNTED


WAYS = pytest.mark.parametrize("way", ["raw", "soft"])


@pytest.mark.conformance("CT-01")
@WAYS
def test_first_store(child, way):
    child(counting(way) + """
with counted() as moved:
    store(base + PAGE)
assert moved == {"pgfault": 1, "min_flt": 1, "rss": 1, "pgalloc_dma32": 1, "numa_hit": 1,
                 "numa_local": 1, "nr_anon_pages": 1, "nr_inactive_anon": 1}, moved
""")


@pytest.mark.conformance("CT-06")
@WAYS
def test_load_then_store(child, way):
    child(counting(way) + """
with counted() as moved:
    assert load(base + 3 * PAGE) in (0, b"\\0")
assert moved == {"pgfault": 1, "min_flt": 1, "rss": 0}, moved
with counted() as moved:
    store(base + 3 * PAGE)
assert (moved["pgfault"], moved["pgalloc_dma32"], moved["rss"]) == (1, 1, 1), moved
""")


@pytest.mark.conformance("CT-04")
@WAYS
def test_forbidden_access(child, way):
    child(counting(way) + """
readonly = p.mmap(None, PAGE, PROT_READ, ANON)
load(readonly)
with counted() as moved:
    try:
        if WAY == "raw":
            with p.guard():
                ctypes.memset(p.host_address(readonly), 1, 1)
        else:
            store(readonly)
    except SegmentationFault as fault:
        assert fault.code == SEGV_ACCERR
    else:
        raise AssertionError("a read-only page was written")
    if WAY == "soft":
        assert raises(SegmentationFault, load, p.vmas[0].start - PAGE).code == SEGV_MAPERR
assert moved["rss"] == 0 and moved["min_flt"] == 0, moved
assert "pgfault" not in moved and not any(name.startswith("pgalloc") for name in moved), moved
""")


def test_page_tables_and_committed_memory_are_shown(child):
    child("""
from realmem.procfs.meminfo import parse_meminfo

machine = Machine(nodes=1, memory="32M", zones={"DMA": 0, "DMA32": "4G"})
def figures():
    shown = parse_meminfo(machine.procfs["/proc/meminfo"])
    node = parse_meminfo(machine.sysfs["/sys/devices/system/node/node0/meminfo"])
    assert (node["AnonPages"], node["PageTables"]) == (shown["AnonPages"], shown["PageTables"])
    assert machine.vmstat["nr_page_table_pages"] * 4 == shown["PageTables"]
    assert machine.vmstat["nr_anon_pages"] * 4 == shown["AnonPages"]
    return shown

empty = figures()
p = machine.spawn()
addr = p.mmap(None, 16 * PAGE, RW, ANON)
p.mmap(None, PAGE, PROT_READ, ANON)
p.touch(addr, 5 * PAGE, write=True)
full = figures()
assert full["AnonPages"] - empty["AnonPages"] == 20
assert full["Committed_AS"] - empty["Committed_AS"] == 64
assert full["PageTables"] - empty["PageTables"] >= 16     # pgd, pud, pmd, pte
assert (machine.vmstat["nr_free_pages"] * 4 == full["MemFree"])
child = p.fork()
assert figures()["Committed_AS"] == 128
child.exit()
p.exit()
assert figures()["AnonPages"] == 0
machine.close()
""")
