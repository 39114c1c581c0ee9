"""/proc/vmallocinfo and meminfo's lines, in the kernel's own form."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import realmem as rm
from realmem.machine import Machine
from realmem.procfs.meminfo import parse_meminfo
from realmem.procfs.vmallocinfo import (
    VM_ALLOC,
    VM_MAP,
    VMAP_RAM,
    format_vmallocinfo,
    parse_vmallocinfo,
)


def test_the_kernels_own_file():
    """Each line of the host's file is read, and of our kinds written the same."""
    try:
        text = Path("/proc/vmallocinfo").read_text()
    except OSError as error:
        pytest.skip(f"/proc/vmallocinfo: {error.strerror}")
    lines = parse_vmallocinfo(text)
    seen = set()
    for line, entry in zip(text.splitlines(), lines, strict=True):
        kinds = {"vmalloc": VM_ALLOC, "vmap": VM_MAP, "vm_map_ram": VMAP_RAM, "unpurged": 0}
        kind = kinds.get(entry["words"][0] if entry["words"] else "")
        if kind is None or "vpages" in entry["words"] or entry["pages"] == 0:
            continue
        if kind == VM_ALLOC and entry["pages"] is None:
            continue
        seen.add(kind)
        # Addresses may be hashed: the size is written as it stands.
        ours = format_vmallocinfo([(0, entry["size"], kind, entry["pages"] or 0, entry["nodes"],
                                    entry["caller"] or "")])
        assert ours.split(" ", 1)[1] == line.split(" ", 1)[1] + "\n"
        assert re.match(r"0x[0-9a-f]{16}-0x[0-9a-f]{16} +\d+", line)
    assert VM_ALLOC in seen


def allocate_here(machine, size):
    return machine.vmalloc(size)


@pytest.mark.conformance("VL-11")
def test_lines():
    with Machine(nodes=2, memory="16M", window="1G") as machine:
        a = allocate_here(machine, 70000)
        page = machine.alloc_pages(rm.GFP_KERNEL, 0)
        b = machine.vmap([page, page])
        c = machine.vm_map_ram([page])
        d = machine.vmalloc_node(4096, 1)
        e = machine.vmalloc(4096)
        machine.vfree(e)
        entries = parse_vmallocinfo(machine.procfs["/proc/vmallocinfo"])
        assert [entry["start"] for entry in entries] == [a, b, c, d, e]
        assert [entry["words"] for entry in entries] == [
            ["vmalloc"], ["vmap"], ["vm_map_ram"], ["vmalloc"], ["unpurged", "vm_area"]]
        assert [entry["pages"] for entry in entries] == [18, None, None, 1, None]
        assert [entry["size"] >> 12 for entry in entries] == [19, 3, 1, 2, 2]
        assert sum(entries[0]["nodes"].values()) == 18 and entries[3]["nodes"] == {1: 1}
        assert re.fullmatch(r"allocate_here\+0x[0-9a-f]+/0x[0-9a-f]+", entries[0]["caller"])
        assert entries[1]["caller"].startswith("test_lines+0x")
        for entry in entries:
            assert entry["end"] - entry["start"] == entry["size"]
        assert format_vmallocinfo(machine._vmalloc.areas()) == machine.procfs["/proc/vmallocinfo"]


@pytest.mark.parametrize("debug", [1, 2])
def test_the_caller_behind_a_checking_machine(debug):
    with Machine(nodes=1, memory="16M", window="1G", debug=debug) as machine:
        allocate_here(machine, 1)
        (entry,) = parse_vmallocinfo(machine.procfs["/proc/vmallocinfo"])
        assert entry["caller"].startswith("allocate_here+0x")


def test_meminfo():
    with Machine(nodes=1, memory="32M", window="2G") as machine:
        def lines():
            figures = parse_meminfo(machine.procfs["/proc/meminfo"])
            return [figures[f"Vmalloc{name}"] for name in ("Total", "Used", "Chunk")]

        assert lines() == [(2 << 20) - 1, 0, 0]
        a = machine.vmalloc("3M")
        b = machine.vmalloc(1)
        page = machine.alloc_pages(rm.GFP_KERNEL, 0)
        machine.vmap([page])            # not its own pages
        assert lines() == [(2 << 20) - 1, (768 + 1) * 4, 0]
        machine.vfree(a)
        assert lines()[1] == 4
        machine.vfree(b)
        assert lines()[1] == 0


def test_exported(tmp_path):
    with Machine(nodes=1, memory="16M", window="1G") as machine:
        machine.vmalloc(1)
        machine.procfs.export(tmp_path)
        assert (tmp_path / "proc/vmallocinfo").read_text() == machine.procfs["/proc/vmallocinfo"]
