"""
The formats, held against the running kernel: its own figures, read into our model and written
again, must come out byte for byte.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from realmem import vmstat
from realmem.node import NUMASTAT_ITEMS
from realmem.procfs import buddyinfo, extfrag, masks, meminfo, pagetypeinfo, zoneinfo
from realmem.procfs.vmstat import format_counters, parse_counters
from realmem.sysctl import Sysctl
from realmem.thp import ThpSettings

NODES = Path("/sys/devices/system/node")


def host_text(path: str | Path) -> str:
    try:
        return Path(path).read_text()
    except (FileNotFoundError, PermissionError) as error:
        pytest.skip(f"{path}: {error.strerror}")


def kernel_release() -> tuple[int, int]:
    major, minor = host_text("/proc/sys/kernel/osrelease").split(".")[:2]
    return int(major), int(re.match(r"\d+", minor)[0])


def node_dirs() -> list[Path]:
    return sorted(NODES.glob("node[0-9]*"))


@pytest.mark.conformance("PF-03")
def test_zoneinfo():
    text = host_text("/proc/zoneinfo")
    if "promo" not in text or "high_min" not in text:
        pytest.skip("the kernel is older than 6.8 (other pageset lines)")
    assert zoneinfo.format_zoneinfo(zoneinfo.parse_zoneinfo(text)) == text


def test_buddyinfo():
    text = host_text("/proc/buddyinfo")
    zones = buddyinfo.parse_buddyinfo(text)
    assert zones and all(len(zone.nr_free) == 11 for zone in zones)
    assert buddyinfo.format_buddyinfo(zones) == text


@pytest.mark.conformance("PF-04")
def test_pagetypeinfo():
    text = host_text("/proc/pagetypeinfo")
    nodes = pagetypeinfo.parse_pagetypeinfo(text)
    assert all(zone.pageblocks and zone.free for node in nodes for zone in node.zones)
    assert pagetypeinfo.format_pagetypeinfo(nodes) == text


def test_vmstat():
    text = host_text("/proc/vmstat")
    assert format_counters(parse_counters(text)) == text


def test_meminfo():
    text = host_text("/proc/meminfo")
    assert meminfo.format_meminfo(meminfo.parse_meminfo(text)) == text


def test_node_files():
    nodes = node_dirs()
    if not nodes:
        pytest.skip("no /sys/devices/system/node (a kernel without NUMA)")
    for node in nodes:
        text = host_text(node / "meminfo")
        if kernel_release() < (6, 18):  # two lines of older kernels lack a column
            text = re.sub(r"((?:FileHugePages|FilePmdMapped):) {8}( *\d+)", r"\1         \2", text)
        nid = int(node.name.removeprefix("node"))
        assert meminfo.format_node_meminfo(nid, meminfo.parse_meminfo(text)) == text
        for name in ("vmstat", "numastat"):
            text = host_text(node / name)
            assert format_counters(parse_counters(text)) == text
        assert tuple(parse_counters(host_text(node / "numastat"))) == NUMASTAT_ITEMS
        cpus = masks.parse_list(host_text(node / "cpulist"))
        assert masks.format_list(cpus) + "\n" == host_text(node / "cpulist")
        text = host_text(node / "cpumap")
        digits = text.strip().replace(",", "")
        # The mask has a bit for each possible CPU, whose number sysfs tells apart.
        possible = masks.parse_list(host_text("/sys/devices/system/cpu/possible"))
        assert masks.format_mask(cpus, possible[-1] + 1) + "\n" == text
        assert sum(1 << cpu for cpu in cpus) == int(digits, 16)


@pytest.mark.parametrize("name", ["online", "possible", "has_cpu", "has_memory"])
def test_node_lists(name):
    text = host_text(NODES / name)
    assert masks.format_list(masks.parse_list(text)) + "\n" == text


@pytest.mark.conformance("CT-17")
def test_names_and_order_are_the_kernels():
    """Ours are 6.18's names; a kernel configured without a part has fewer."""
    theirs = [name for name in parse_counters(host_text("/proc/vmstat")) if "_device" not in name]
    if kernel_release() != (6, 18):
        pytest.skip("the names are those of Linux 6.18, which this is not")
    assert vmstat.VMSTAT_ITEMS[0] == "nr_free_pages"
    # Order of what both have, and nothing of theirs unknown to us.
    assert [name for name in vmstat.VMSTAT_ITEMS if name in theirs] == theirs
    missing = set(vmstat.VMSTAT_ITEMS) - set(theirs)
    assert not any(
        name.startswith(("nr_free", "numa_hit", "pgalloc", "pgfault")) for name in missing
    )


def test_meminfo_names_and_order_are_the_kernels():
    if kernel_release() != (6, 18):
        pytest.skip("the names are those of Linux 6.18, which this is not")
    from realmem.procfs import ProcFS, SysFS

    machine = OneNode()
    theirs = meminfo.parse_meminfo(host_text("/proc/meminfo"))
    ours = meminfo.parse_meminfo(ProcFS(machine)["/proc/meminfo"])
    del ours["Quicklists"]              # Linux's line until 5.2
    assert [name for name in ours if name in theirs] == list(theirs)
    node = node_dirs()[0]
    theirs = meminfo.parse_meminfo(host_text(node / "meminfo"))
    ours = meminfo.parse_meminfo(SysFS(machine)[f"{NODES}/node0/meminfo"])
    assert [name for name in ours if name in theirs] == list(theirs)


class OneNode:
    """The least that the files need: a node without memory."""

    class _Node:
        id, cpus, distance, zones = 0, [0], [10], ()

    nodes = (_Node,)
    sysctl = Sysctl(None, None, lambda: None)
    thp = ThpSettings(None)
    committed_pages = 0
    _paging = None
    processes: dict[int, object] = {}  # noqa: RUF012
    kmem_caches: dict[str, object] = {}  # noqa: RUF012
    cpus = 1

    class quicklists:
        pages = 0

    class _vmalloc:
        nr_pages = 0

    vmalloc_space = 64 << 30

    class _allocator:
        @staticmethod
        def check_alive():
            pass

        @staticmethod
        def zone_info(index):
            names = (
                "start_pfn",
                "spanned_pages",
                "present_pages",
                "managed_pages",
                "batch",
                "high_min",
                "high_max",
            )
            return {**dict.fromkeys(names, 0), "watermark": [0] * 4, "lowmem_reserve": [0] * 4}

        @staticmethod
        def zone_stat(index):
            return {
                "free_pages": 0,
                "nr_free": [[0] * 5] * 11,
                "pageblocks": [0] * 5,
                "pgalloc": 0,
                "numa": [0] * 6,
                "pcp": [],
                "nr_reserved_highatomic": 0,
            }

        @staticmethod
        def events():
            return {"pgfree": 0}

        @staticmethod
        def frame_stat(nid):
            return dict.fromkeys(
                ("anon", "anon_huge", "shmem", "file", "dirty", "mapped", "mlocked",
                 "mlocked_file", "active", "active_file", "table", "slab",
                 "slab_reclaimable"), 0)


@pytest.mark.parametrize(
    ("members", "text"),
    [
        ([], ""),
        ([0], "0"),
        ([0, 1, 2, 5], "0-2,5"),
        ([3, 1], "1,3"),
        (range(64), "0-63"),
    ],
)
def test_list_format(members, text):
    assert masks.format_list(members) == text


@pytest.mark.parametrize(
    ("members", "nr_bits", "text"),
    [
        ([0, 1], 2, "3"),
        ([], 4, "0"),
        ([0], 8, "01"),
        ([0], 32, "00000001"),
        ([33], 40, "02,00000000"),
        (range(96), 96, "ffffffff,ffffffff,ffffffff"),
    ],
)
def test_mask_format(members, nr_bits, text):
    assert masks.format_mask(members, nr_bits) == text


@given(st.sets(st.integers(0, 300)))
def test_list_round_trip(members):
    assert masks.parse_list(masks.format_list(members)) == sorted(members)


@given(
    st.lists(
        st.tuples(
            st.integers(0, 70),
            st.sampled_from(["DMA", "Normal", "Movable"]),
            st.lists(st.integers(0, 10**9), min_size=11, max_size=11),
        )
    )
)
def test_buddyinfo_round_trip(rows):
    zones = [buddyinfo.FreeAreas(*row) for row in rows]
    assert buddyinfo.parse_buddyinfo(buddyinfo.format_buddyinfo(zones)) == zones


def test_counts_past_the_columns():
    """Linux stops counting pagetypeinfo's lists at 100000 and says so; other columns widen."""
    zone = pagetypeinfo.ZoneTypes("Normal", {"Movable": [99999, 100000, 250000]}, {"Movable": 7})
    text = pagetypeinfo.format_pagetypeinfo([pagetypeinfo.NodeTypes(3, 9, [zone])])
    row = "Node    3, zone   Normal, type      Movable  99999 >100000 >100000 \n"
    assert row in text
    assert text.endswith("\nNode 3, zone   Normal            7 \n")
    assert "1234567 " in buddyinfo.format_buddyinfo([buddyinfo.FreeAreas(0, "DMA", [1234567])])


@pytest.mark.conformance("BD-28")
@pytest.mark.parametrize(
    ("nr_free", "order", "index"),
    [
        ([64] + [0] * 10, 4, 922),
        ([64, 0, 0, 0, 1] + [0] * 6, 4, -1000),
        ([0] * 11, 4, 0),
        ([1] + [0] * 10, 10, 0),
    ],
)
def test_fragmentation_index(nr_free, order, index):
    assert extfrag.fragmentation_index(order, nr_free) == index


def test_extfrag_files():
    """From the host's own buddyinfo; both are read until nothing moved in between."""
    script = "mount -t debugfs none /mnt && cd /mnt/extfrag && for i in 1 2 3 4 5 6 7 8; do "
    script += "cat /proc/buddyinfo; echo --; cat extfrag_index; echo --; cat unusable_index; "
    script += "echo --; cat /proc/buddyinfo; echo ==; done"
    ran = subprocess.run(["unshare", "-m", "sh", "-c", script], capture_output=True, text=True)
    if ran.returncode:
        pytest.skip(f"debugfs can't be mounted: {ran.stderr.strip().splitlines()[-1:]}")
    compared = 0
    for turn in ran.stdout.split("==\n")[:-1]:
        before, theirs, unusable, after = turn.split("--\n")
        if before == after:
            zones = buddyinfo.parse_buddyinfo(before)
            assert extfrag.format_indexes(zones, extfrag.fragmentation_index, 2) == theirs
            assert extfrag.format_indexes(zones, extfrag.unusable_index, 1) == unusable
            compared += 1
    if not compared:
        pytest.skip("the host's free areas never held still")
