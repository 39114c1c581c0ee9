"""The text files of a real machine: they agree with it, with each other, and with the tools."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from pathlib import Path

import pytest

import realmem as rm
from realmem import vmstat
from realmem.layout import GFP, MIGRATE_NAMES
from realmem.procfs import buddyinfo, masks, meminfo, pagetypeinfo, zoneinfo
from realmem.procfs.vmstat import parse_counters

NODES = "/sys/devices/system/node"


@pytest.fixture(scope="module")
def machine():
    """Zones of every kind, a memory-only node and a node of CPUs only, pages in use and listed."""
    specs = [
        rm.NodeSpec("48M", cpus=sorted(os.sched_getaffinity(0)), distance=[10, 20, 17]),
        rm.NodeSpec("24M", cpus=[], distance=[20, 10, 40]),
        rm.NodeSpec(0, cpus=[], distance=[17, 40, 10]),
    ]
    zones = {"DMA": "16M", "DMA32": "32M", "Movable": "4M"}
    with rm.Machine(nodes=specs, zones=zones) as machine:
        kept = [machine.alloc_pages(GFP.KERNEL, order) for order in (0, 0, 2, 5, 9)]
        kept += [machine.alloc_pages_node(1, GFP.HIGHUSER_MOVABLE, 0) for _ in range(3)]
        kept.append(machine.alloc_pages(GFP.KERNEL | GFP.RECLAIMABLE, 1))
        machine.free_page(kept.pop(0))
        machine.kept = kept
        yield machine


def test_paths(machine):
    paths = machine.procfs.paths()
    assert paths == sorted(paths) == list(machine.procfs)
    memory = ["buddyinfo", "meminfo", "pagetypeinfo", "slabinfo", "swaps", "vmallocinfo",
              "vmstat", "zoneinfo"]
    assert [path for path in paths if "/sys/" not in path] == [f"/proc/{name}" for name in memory]
    assert "/proc/sys/vm/min_free_kbytes" in machine.procfs
    assert f"{NODES}/node2/meminfo" in machine.sysfs
    assert f"{NODES}/node3/meminfo" not in machine.sysfs
    of_nodes = [path for path in machine.sysfs if "/node/" in path or "extfrag" in path]
    assert len(of_nodes) == 6 + 3 * 6 + 2
    assert len(machine.sysfs) == len(machine.sysfs.paths()) == len(machine.sysfs.items())
    assert all(
        text.endswith("\n") for tree in (machine.procfs, machine.sysfs)
        for path, text in tree.items()
        if "/slab/" not in path and path != "/proc/vmallocinfo"     # empty without areas
    )


def test_unknown_and_read_only_files(machine):
    for tree, path in [
        (machine.procfs, "/proc/nothing"),
        (machine.sysfs, f"{NODES}/node9/vmstat"),
        (machine.procfs, f"{NODES}/online"),
        (machine.sysfs, "/proc/meminfo"),
    ]:
        with pytest.raises(KeyError):
            tree[path]
        with pytest.raises(KeyError):
            tree[path] = "1"
    for tree, path in [(machine.procfs, "/proc/meminfo"), (machine.sysfs, f"{NODES}/online")]:
        with pytest.raises(PermissionError) as caught:
            tree[path] = "1"
        assert caught.value.errno == errno.EACCES
    with pytest.raises(TypeError):
        machine.procfs["/proc/sys/vm/min_free_kbytes"] = 1


def test_writing_a_sysctl_file_moves_the_marks(machine):
    path = "/proc/sys/vm/watermark_scale_factor"
    assert machine.procfs[path] == "10\n"
    zone = machine.nodes[0].zone("Normal")
    before = zone.watermark
    machine.procfs[path] = "500\n"
    assert machine.sysctl["vm.watermark_scale_factor"] == 500
    assert zone.watermark.low > before.low and zone.watermark.min == before.min
    machine.procfs[path] = "10"
    assert zone.watermark == before
    with pytest.raises(OSError) as caught:
        machine.procfs[path] = "3001"
    assert caught.value.errno == errno.EINVAL


@pytest.mark.conformance("PF-02")
def test_buddyinfo_adds_up(machine):
    zones = buddyinfo.parse_buddyinfo(machine.procfs["/proc/buddyinfo"])
    theirs = [zone for node in machine.nodes for zone in node.zones]
    assert [zone.name for zone in zones] == [zone.name for zone in theirs]
    assert [zone.name for zone in zones] == [
        "DMA",
        "DMA32",
        "Normal",
        "Movable",
        "Normal",
        "Movable",
    ]
    for ours, zone in zip(zones, theirs, strict=True):
        assert ours.nr_free == zone.free_area
        pages = sum(blocks << order for order, blocks in enumerate(ours.nr_free))
        assert pages == zone.free_pages
    total = sum(zone.free_pages for zone in theirs)
    assert parse_counters(machine.procfs["/proc/vmstat"])["nr_free_pages"] == total


@pytest.mark.conformance("PF-03", "PC-09")
def test_zoneinfo(machine):
    text = machine.procfs["/proc/zoneinfo"]
    records = zoneinfo.parse_zoneinfo(text)
    assert zoneinfo.format_zoneinfo(records) == text
    assert [(record.nid, record.name) for record in records] == [
        (nid, name) for nid in range(3) for name in ("DMA", "DMA32", "Normal", "Movable")
    ], "zones without memory are shown, and end early"
    by_name = {(node.id, zone.name): zone for node in machine.nodes for zone in node.zones}
    heads = [(record.nid, record.name) for record in records if record.node_stats is not None]
    assert heads == [(0, "DMA"), (1, "Normal")], "a node's counters: in its first zone with memory"
    in_use = 0
    for record in records:
        zone = by_name.get((record.nid, record.name))
        assert (record.stats is not None) == (zone is not None)
        if zone is None:
            assert (record.free, record.present, list(record.protection)) == (0, 0, [0] * 4)
            continue
        assert (record.free, record.spanned, record.present, record.managed) == (
            zone.free_pages,
            zone.spanned_pages,
            zone.present_pages,
            zone.managed_pages,
        )
        assert (record.min, record.low, record.high, record.promo) == tuple(zone.watermark)
        assert list(record.protection) == zone.lowmem_reserve
        assert record.start_pfn == zone.start_pfn
        assert record.stats["nr_free_pages"] == zone.free_pages
        assert tuple(record.stats) == vmstat.ZONE_STAT_ITEMS + vmstat.NUMA_STAT_ITEMS
        assert [pageset.cpu for pageset in record.pagesets] == [
            cpu for node in machine.nodes for cpu in node.cpus
        ]
        info = machine._allocator.zone_info(zone.index)
        for pageset in record.pagesets:
            assert (pageset.batch, pageset.high_min, pageset.high_max) == (
                info["batch"],
                info["high_min"],
                info["high_max"],
            )
            assert pageset.count <= max(pageset.high, pageset.high_min)
        listed = sum(pageset.count for pageset in record.pagesets)
        in_use += record.managed - record.free - listed
    assert in_use == sum(1 << page.order for page in machine.kept)


@pytest.mark.conformance("PF-04")
def test_pagetypeinfo(machine):
    text = machine.procfs["/proc/pagetypeinfo"]
    nodes = pagetypeinfo.parse_pagetypeinfo(text)
    assert pagetypeinfo.format_pagetypeinfo(nodes) == text
    assert [node.nid for node in nodes] == [0, 1], "a node without memory is left out"
    for node in nodes:
        for shown, zone in zip(node.zones, machine.nodes[node.nid].zones, strict=True):
            assert shown.free == zone.free_area_by_type
            assert list(shown.free) == list(shown.pageblocks) == list(MIGRATE_NAMES)
            # A pageblock that another zone or the node's end cuts counts in both.
            assert sum(shown.pageblocks.values()) == -(-zone.spanned_pages // 512)
    reclaimable = sum(zone.pageblocks["Reclaimable"] for zone in nodes[0].zones)
    assert reclaimable >= 1 and sum(zone.pageblocks["Unmovable"] for zone in nodes[0].zones) >= 1


@pytest.mark.conformance("CT-17")
def test_vmstat_names(machine):
    counters = parse_counters(machine.procfs["/proc/vmstat"])
    assert tuple(counters) == vmstat.VMSTAT_ITEMS
    assert counters == machine.vmstat.snapshot()
    at = {name: i for i, name in enumerate(counters)}
    order = (
        "nr_free_pages",
        "numa_hit",
        "nr_inactive_anon",
        "pgpgin",
        "pswpout",
        "pgalloc_dma",
        "pgfree",
        "pgactivate",
        "pgfault",
        "pgmajfault",
    )
    assert sorted(order, key=at.__getitem__) == list(order)


@pytest.mark.conformance("PF-23")
def test_meminfo(machine):
    text = machine.procfs["/proc/meminfo"]
    figures = meminfo.parse_meminfo(text)
    assert meminfo.format_meminfo(figures) == text
    zones = [zone for node in machine.nodes for zone in node.zones]
    assert figures["MemTotal"] == 4 * sum(zone.managed_pages for zone in zones)
    assert figures["MemFree"] == 4 * sum(zone.free_pages for zone in zones)
    assert 0 < figures["MemAvailable"] < figures["MemFree"]
    assert {
        "AnonPages",
        "Mapped",
        "Shmem",
        "SwapCached",
        "Mlocked",
        "Committed_AS",
        "CommitLimit",
        "PageTables",
        "Quicklists",
    } <= set(figures)
    assert sum(figures[name] for name in figures if name.startswith("DirectMap")) == 72 << 10


def test_node_files(machine):
    sums: dict[str, int] = {}
    for node in machine.nodes:
        where = f"{NODES}/node{node.id}/"
        read = machine.sysfs.__getitem__
        figures = meminfo.parse_meminfo(read(where + "meminfo"))
        assert meminfo.format_node_meminfo(node.id, figures) == read(where + "meminfo")
        assert figures["MemTotal"] == 4 * sum(zone.managed_pages for zone in node.zones)
        assert figures["MemUsed"] == figures["MemTotal"] - 4 * node.free_pages
        assert parse_counters(read(where + "numastat")) == node.stat
        for name, count in parse_counters(read(where + "vmstat")).items():
            sums[name] = sums.get(name, 0) + count
        assert masks.parse_list(read(where + "cpulist")) == node.cpus
        assert [int(bit) for bit in read(where + "distance").split()] == node.distance
        mask = int(read(where + "cpumap").replace(",", ""), 16)
        assert mask == sum(1 << cpu for cpu in node.cpus)
    whole = machine.vmstat.snapshot()
    assert sums == {name: whole[name] for name in sums}


def test_node_sets(machine):
    files = {
        name: machine.sysfs[f"{NODES}/{name}"]
        for name in ("online", "possible", "has_cpu", "has_memory", "has_normal_memory")
    }
    assert files == {
        "online": "0-2\n",
        "possible": "0-2\n",
        "has_cpu": "0\n",
        "has_memory": "0-1\n",
        "has_normal_memory": "0-1\n",
    }


def test_a_node_of_movable_memory_only():
    specs = [rm.NodeSpec("16M"), rm.NodeSpec("16M")]
    with rm.Machine(nodes=specs, zones={"DMA": 0, "DMA32": "4G", "Movable": "100%"}) as machine:
        zones = [zone.name for node in machine.nodes for zone in node.zones]
        normal = machine.sysfs[f"{NODES}/has_normal_memory"]
        has = [
            str(node.id)
            for node in machine.nodes
            if any(zone.name != "Movable" for zone in node.zones)
        ]
        assert "Movable" in zones and machine.sysfs[f"{NODES}/has_memory"] == "0-1\n"
        assert normal.strip() == ",".join(has)
        assert machine.procfs["/proc/zoneinfo"].count("per-node stats") == 2


def test_files_change_with_the_machine(machine):
    before = machine.procfs["/proc/buddyinfo"]
    page = machine.alloc_pages(GFP.KERNEL, 10)
    during = machine.procfs["/proc/buddyinfo"]
    machine.free_pages(page, 10)
    assert during != before == machine.procfs["/proc/buddyinfo"]


def test_a_closed_machine_has_no_files():
    machine = rm.Machine(nodes=1, memory="8M")
    tree, nodes = machine.procfs, machine.sysfs
    machine.close()
    for read in (
        lambda: tree["/proc/meminfo"],
        lambda: nodes[f"{NODES}/node0/meminfo"],
        lambda: machine.procfs,
        lambda: machine.sysfs,
    ):
        with pytest.raises(ValueError):
            read()


# ---- the exported tree, and the tools that read such files ----


@pytest.fixture
def exported(machine, tmp_path):
    machine.procfs.export(tmp_path / "made" / "here")
    return tmp_path / "made" / "here"


def test_export_writes_both_trees(machine, exported):
    for tree in (machine.procfs, machine.sysfs):
        for path, text in tree.items():
            assert (exported / path.lstrip("/")).read_text() == text
    files = {f"/{path.relative_to(exported)}" for path in exported.rglob("*") if path.is_file()}
    assert files == {*machine.procfs, *machine.sysfs}
    machine.procfs.export(exported)  # over what is there


def test_psutil_reads_it(machine, exported, monkeypatch):
    psutil = pytest.importorskip("psutil")
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(exported / "proc"))
    memory = psutil.virtual_memory()
    figures = meminfo.parse_meminfo(machine.procfs["/proc/meminfo"])
    assert (memory.total, memory.free, memory.available) == tuple(
        figures[name] << 10 for name in ("MemTotal", "MemFree", "MemAvailable")
    )


def with_files(exported: Path, files: list[str], command: list[str]) -> str:
    """Run a tool that sees our files in place of the kernel's."""
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    binds = "".join(f"mount --bind {exported / path.lstrip('/')} {path} && " for path in files)
    ran = subprocess.run(
        ["unshare", "-m", "sh", "-c", f'{binds}exec "$@"', "sh", *command],
        capture_output=True,
        text=True,
    )
    if "unshare:" in ran.stderr or "mount:" in ran.stderr:
        pytest.skip(f"no mount namespace of our own: {ran.stderr.strip()}")
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_free_reads_it(machine, exported):
    text = with_files(exported, ["/proc/meminfo"], ["free", "-k"])
    numbers = next(line for line in text.splitlines() if line.startswith("Mem:")).split()
    figures = meminfo.parse_meminfo(machine.procfs["/proc/meminfo"])
    assert int(numbers[1]) == figures["MemTotal"]
    assert int(numbers[3]) == figures["MemFree"]
    assert int(numbers[6]) == figures["MemAvailable"]


def test_vmstat_s_reads_it(machine, exported):
    text = with_files(exported, ["/proc/meminfo", "/proc/vmstat"], ["vmstat", "-s"])
    numbers = {line.split(maxsplit=1)[1]: int(line.split()[0]) for line in text.splitlines()}
    figures = meminfo.parse_meminfo(machine.procfs["/proc/meminfo"])
    assert numbers["K total memory"] == figures["MemTotal"]
    assert numbers["K free memory"] == figures["MemFree"]


@pytest.mark.parametrize("option", ["-n", "-m"])
def test_numastat_reads_it(machine, exported, option):
    files = [NODES, "/proc/meminfo", "/proc/vmstat"]
    text = with_files(exported, files, ["numastat", option])
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line.strip()}
    if option == "-n":
        hits = [float(cell) * 256 for cell in rows["Numa_Hit"]]  # MB of pages
        stats = [node.stat["numa_hit"] for node in machine.nodes]
        assert hits[:3] == pytest.approx(stats, abs=256 * 0.01)
    else:
        total = [float(cell) for cell in rows["MemTotal"]]
        sizes = [sum(zone.managed_pages for zone in node.zones) / 256 for node in machine.nodes]
        assert total[:3] == pytest.approx(sizes, abs=0.01)


def test_libnuma_reads_it(machine, exported):
    """numactl's --hardware shows our nodes, sizes and distances."""
    text = with_files(exported, [NODES], ["numactl", "--hardware"])
    for node in machine.nodes:
        size = sum(zone.managed_pages for zone in node.zones) // 256
        assert f"node {node.id} size: {size} MB" in text
    rows = [
        line.split() for line in text.splitlines() if line.strip().startswith(("0:", "1:", "2:"))
    ]
    assert [[int(cell) for cell in row[1:]] for row in rows] == [
        node.distance for node in machine.nodes
    ]
