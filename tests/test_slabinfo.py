"""/proc/slabinfo and /sys/kernel/slab, beside the running kernel's own."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import realmem as rm
from realmem import SLAB
from realmem.procfs.slabinfo import format_slabinfo, parse_slabinfo
from realmem.procfs.slabs import FOLDER, unique_id

HOST = Path(FOLDER)


@pytest.fixture
def machine() -> Iterator[rm.Machine]:
    with rm.Machine(nodes=2, memory="32M") as machine:
        yield machine
        machine.check()


def host_text(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError as why:
        pytest.skip(f"{path} can't be read here: {why.strerror}")


@pytest.mark.conformance("SL-32")
def test_the_running_kernel_writes_it_the_same_way():
    text = host_text("/proc/slabinfo")
    lines = parse_slabinfo(text)
    assert len(lines) == text.count("\n") - 2
    assert format_slabinfo(lines) == text


def line_of(machine, name):
    (line,) = [one for one in parse_slabinfo(machine.procfs["/proc/slabinfo"])
               if one.name == name]
    return line


def test_the_newest_cache_stands_first_and_merged_ones_once(machine):
    machine.kmem_cache_create("first", 1000)
    machine.kmem_cache_create("second", 712, flags=SLAB.NO_MERGE)
    machine.kmem_cache_create("same_as_first", 1000)
    names = [line.name for line in parse_slabinfo(machine.procfs["/proc/slabinfo"])]
    assert names[:2] == ["second", "first"]
    assert "same_as_first" not in names
    assert len(names) == len(set(names))


def test_generic_caches_stand_in_the_kernel_s_order(machine):
    theirs = [line.name for line in parse_slabinfo(host_text("/proc/slabinfo"))]
    ours = [line.name for line in parse_slabinfo(machine.procfs["/proc/slabinfo"])]
    both = set(ours) & {name for name in theirs if name.startswith("kmalloc")}
    assert len(both) > 20
    assert [name for name in ours if name in both] == [name for name in theirs if name in both]


@pytest.mark.conformance("SL-32")
def test_its_figures_are_the_cache_s(machine):
    cache = machine.kmem_cache_create("mine", 700, flags=SLAB.NO_MERGE)
    before = line_of(machine, "mine")
    assert (before.active_objs, before.num_objs, before.num_slabs) == (0, 0, 0)
    addrs = [cache.alloc(node=i % 2) for i in range(100)]
    line = line_of(machine, "mine")
    assert line.num_objs == line.num_slabs * line.objperslab
    assert 100 <= line.active_objs <= line.num_objs
    assert line.active_slabs == line.num_slabs
    assert (line.objsize, line.objperslab, line.pagesperslab) == (
        cache.size, cache.objs_per_slab, 1 << cache.order)
    for addr in addrs:
        cache.free(addr)
    cache.shrink()
    assert line_of(machine, "mine") == before


def test_slab_pages_are_counted_by_node_and_kind(machine):
    def pages():
        return [
            tuple(int(re.search(rf"{name}: +(\d+) kB", machine.sysfs[
                f"/sys/devices/system/node/node{nid}/meminfo"])[1]) // 4
                  for name in ("SReclaimable", "SUnreclaim"))
            for nid in range(2)
        ]

    before = pages()
    plain = machine.kmem_cache_create("plain", 2048, flags=SLAB.NO_MERGE)
    kept = machine.kmem_cache_create("kept", 512, flags=SLAB.NO_MERGE | SLAB.RECLAIM_ACCOUNT)
    a, b = plain.alloc(node=0), kept.alloc(node=1)
    large = machine.kmalloc_node(20000, rm.GFP_KERNEL, 1)
    after = pages()
    assert after[0] == (before[0][0], before[0][1] + (1 << plain.order))
    assert after[1] == (before[1][0] + (1 << kept.order), before[1][1] + 8)
    assert machine.vmstat["nr_slab_reclaimable"] == sum(one[0] for one in after)
    assert machine.vmstat["nr_slab_unreclaimable"] == sum(one[1] for one in after)
    meminfo = machine.procfs["/proc/meminfo"]
    assert f"Slab: {sum(map(sum, after)) * 4:>18} kB\n" in meminfo
    plain.free(a)
    kept.free(b)
    machine.kfree(large)
    plain.destroy()
    kept.destroy()
    assert pages() == before


# ---- /sys/kernel/slab ----


def test_every_file_is_one_that_linux_has(machine):
    if not HOST.is_dir():
        pytest.skip(f"{FOLDER} is not there: this kernel has no SLUB")
    there = {path.name for path in next(HOST.iterdir()).iterdir()}
    ours = {path.rsplit("/", 1)[1] for path in machine.sysfs if path.startswith(FOLDER)}
    assert ours <= there
    # Ours keep nothing remote from being used up, and take no slab from another CPU.
    assert there - ours <= {"remote_node_defrag_ratio", "alloc_calls", "free_calls",
                            "skip_kfence", "failslab"}


def test_figures_are_written_as_linux_writes_them(machine):
    cache = machine.kmem_cache_create("mine", 700, flags=SLAB.NO_MERGE)
    addrs = [cache.alloc(node=i % 2) for i in range(64)]
    shapes = {}
    for path, text in machine.sysfs.items():
        if path.startswith(f"{FOLDER}/mine/"):
            shapes[path.rsplit("/", 1)[1]] = text
    if not HOST.is_dir():
        pytest.skip(f"{FOLDER} is not there: this kernel has no SLUB")
    numbers = re.compile(r"\d+")
    for name, text in shapes.items():
        try:
            theirs = (HOST / "kmalloc-64" / name).read_text()
        except OSError as why:
            pytest.skip(f"{HOST}/kmalloc-64/{name} can't be read here: {why.strerror}")
        shape = numbers.sub("0", re.sub(r" [NC]\d+=[\d()]+", "", theirs))
        assert numbers.sub("0", re.sub(r" N\d+=\d+", "", text)) == shape, name
    assert re.fullmatch(r"\d+ N0=\d+ N1=\d+\n", shapes["slabs"])
    total, first, second = map(int, re.findall(r"(?:^|=)(\d+)", shapes["objects"]))
    assert total == first + second >= 64
    for addr in addrs:
        cache.free(addr)


@pytest.mark.skipif(not HOST.is_dir(), reason=f"{FOLDER} is not there: this kernel has no SLUB")
def test_unique_names_are_the_kernel_s():
    def number(folder, name):
        try:
            return int((folder / name).read_text().split()[0])
        except OSError as why:
            pytest.skip(f"{folder / name} can't be read here: {why.strerror}")

    checked = 0
    for folder in HOST.glob(":*"):
        flags = SLAB(0)
        for name, flag in (("cache_dma", SLAB.CACHE_DMA),
                           ("reclaim_account", SLAB.RECLAIM_ACCOUNT),
                           ("sanity_checks", SLAB.CONSISTENCY_CHECKS)):
            if number(folder, name):
                flags |= flag
        if "A" in folder.name:      # whether objects are charged stands in no file
            flags |= SLAB.ACCOUNT
        assert unique_id(number(folder, "slab_size"), flags) == folder.name
        checked += 1
    assert checked > 10


def test_merged_caches_share_a_folder(machine):
    one = machine.kmem_cache_create("one", 1500)
    machine.kmem_cache_create("two", 1497)
    alone = machine.kmem_cache_create("alone", 1500, ctor=lambda view: None)
    assert machine.sysfs[f"{FOLDER}/one/aliases"] == "1\n"
    shared = f"{FOLDER}/{unique_id(one.size, one.flags)}"
    addr = one.alloc()
    for name in ("objects", "slabs", "object_size"):
        assert (machine.sysfs[f"{shared}/{name}"] == machine.sysfs[f"{FOLDER}/one/{name}"]
                == machine.sysfs[f"{FOLDER}/two/{name}"])
    assert machine.sysfs[f"{FOLDER}/alone/objects"] == "0\n"
    assert "lambda" in machine.sysfs[f"{FOLDER}/alone/ctor"]
    assert machine.sysfs[f"{FOLDER}/one/ctor"] == ""
    one.free(addr)
    alone.destroy()
    assert f"{FOLDER}/alone/objects" not in machine.sysfs


def test_what_can_be_written(machine):
    cache = machine.kmem_cache_create("mine", 700, flags=SLAB.NO_MERGE)
    folder = f"{FOLDER}/mine"
    cache.free(cache.alloc())
    assert cache.num_slabs == 1
    machine.sysfs[f"{folder}/shrink"] = "1\n"
    assert cache.num_slabs == 0
    machine.sysfs[f"{folder}/min_partial"] = "7\n"
    assert cache.min_partial == 7 and machine.sysfs[f"{folder}/min_partial"] == "7\n"
    # Only a cache with debugging flags can be validated: tests/test_slab_debug_option.py.
    for name, text in (("shrink", "0"), ("shrink", ""), ("validate", "1"),
                       ("min_partial", "x"), ("min_partial", "-1")):
        with pytest.raises(OSError, match="Invalid argument"):
            machine.sysfs[f"{folder}/{name}"] = text
    for name in ("slabs", "order", "ctor"):
        with pytest.raises(PermissionError):
            machine.sysfs[f"{folder}/{name}"] = "1"
    assert cache.min_partial == 7
