"""
How machines end: closed, dropped, kept alive by what they gave out, many at once.

What the host gave is counted before and after: descriptors, mappings, shared memory.
"""

from __future__ import annotations

import gc
import random

import pytest
from lifetime import SMALL, address_space, footprint, with_zeros

import realmem as rm
from realmem import GFP


def test_twenty_machines_one_after_the_other():
    with rm.Machine(1, "4M", **SMALL) as machine:       # first use loads modules
        machine.check()
    before = footprint()
    sizes = []
    for i in range(20):
        with rm.Machine(1 + i % 3, "4M", **SMALL) as machine:
            with_zeros(machine)
            machine.check()
        sizes.append(address_space())
    assert footprint() == before
    assert max(sizes[5:]) - min(sizes[5:]) < 16 << 20


def test_twenty_machines_at_once():
    before = footprint()
    machines = [rm.Machine(1 + i % 3, "4M", **SMALL) for i in range(20)]
    rng = random.Random(1)
    kept = []
    for _ in range(4000):
        if kept and rng.random() < 0.45:
            machine, page, order = kept.pop(rng.randrange(len(kept)))
            machine.free_pages(page, order)
        else:
            machine = rng.choice(machines)
            order = rng.choice((0, 0, 0, 1, 3, 4))
            kept.append((machine, machine.alloc_pages(GFP.ATOMIC, order), order))
    for machine in machines:
        machine.check()
    rng.shuffle(machines)
    while machines:
        machines.pop().close()
        for machine in machines[:2]:
            machine.check()
    assert footprint() == before


def test_what_a_closed_machine_still_tells_is_what_it_was_made_of():
    """Other attributes ask first whether it is open; none is shown by chance."""
    machine = rm.Machine(2, "4M", **SMALL)
    bound = {name for kind in type(machine).__mro__
             for name in getattr(kind, "__annotations__", {})}
    shown = {name for name in vars(machine) if not name.startswith("_")}
    machine.close()
    assert shown - bound == {
        "backing", "cpus", "fallback_orders", "faults", "nodes", "seed", "sysctl", "thp"}


def test_everything_on_a_closed_machine_is_a_value_error():
    machine = rm.Machine(2, "4M", page_owner=True, **SMALL)
    page = machine.alloc_pages(GFP.KERNEL, 0)
    pages = machine.alloc_pages_bulk(GFP.KERNEL, 3)
    addr = page.address
    node, zone = machine.nodes[0], machine.nodes[0].zones[0]
    vmstat = machine.vmstat
    machine.close()
    machine.close()
    calls = {
        name: (lambda name=name: getattr(page, name))
        for name in ("address", "node", "zone", "order", "refcount", "mapcount", "flags",
                     "migratetype", "owner", "mappings")
    } | {
        "alloc_pages": lambda: machine.alloc_pages(GFP.KERNEL, 0),
        "alloc_pages node": lambda: machine.alloc_pages(GFP.KERNEL, 0, node=0),
        "alloc_pages_node": lambda: machine.alloc_pages_node(0, GFP.KERNEL, 0),
        "alloc_page_interleave": lambda: machine.alloc_page_interleave(GFP.KERNEL, 0, 0),
        "alloc_pages_exact": lambda: machine.alloc_pages_exact(1, GFP.KERNEL),
        "alloc_pages_bulk": lambda: machine.alloc_pages_bulk(GFP.KERNEL, 1),
        "get_free_pages": lambda: machine.get_free_pages(GFP.KERNEL, 0),
        "get_zeroed_page": lambda: machine.get_zeroed_page(GFP.KERNEL),
        "free_pages": lambda: machine.free_pages(page, 0),
        "free_pages addr": lambda: machine.free_pages(addr, 0),
        "free_pages 0": lambda: machine.free_pages(0, 0),
        "free_page": lambda: machine.free_page(page),
        "free_pages_bulk": lambda: machine.free_pages_bulk(pages),
        "free_pages_bulk none": lambda: machine.free_pages_bulk([]),
        "drain_all_pages": machine.drain_all_pages,
        "va": lambda: machine.va(0),
        "pa": lambda: machine.pa(addr),
        "virt_to_page": lambda: machine.virt_to_page(addr),
        "pfn_to_page": lambda: machine.pfn_to_page(0),
        "view": lambda: machine.view(addr, 1),
        "check": machine.check,
        "show_mem": machine.show_mem,
        "vmstat": lambda: machine.vmstat["pgfree"],
        "old vmstat": lambda: vmstat["pgfree"],
        "procfs": lambda: machine.procfs["/proc/buddyinfo"],
        "sysctl": lambda: machine.sysctl.__setitem__("vm.min_free_kbytes", 1000),
        "atomic": lambda: machine.atomic_context().__enter__(),
        "enter": lambda: machine.__enter__(),
        "node.free_pages": lambda: node.free_pages,
        "node.stat": lambda: node.stat,
        "zone.free_pages": lambda: zone.free_pages,
        "zone.free_area": lambda: zone.free_area,
        "zone.watermark": lambda: zone.watermark,
        "get": page.get,
        "put": page.put,
    }
    for name, call in calls.items():
        with pytest.raises(ValueError, match="closed"):
            call()
            pytest.fail(name)
    assert "closed" in repr(machine)
    assert repr(page) and hash(page) and page == page


def test_views_hold_a_machine_open():
    before = footprint()
    machine = rm.Machine(1, "4M", **SMALL)
    page = machine.alloc_pages(GFP.KERNEL, 0)
    view = machine.view(page.address, 4096)
    with pytest.raises(BufferError, match="1 view"):
        machine.close()
    machine.check()                                     # nothing was changed
    view[0] = 7
    assert view[0] == 7
    inner = view[5:10]
    view.release()
    with pytest.raises(BufferError):
        machine.close()
    inner.release()
    machine.close()
    assert footprint() == before


@pytest.mark.crash
def test_a_view_that_outlives_the_block_is_cut_off(python):
    """Its memory went with the machine; its address is nobody else's until it dies."""
    child = python("""
import realmem as rm, faulthandler
with rm.Machine(1, "4M") as machine:
    page = machine.alloc_pages(rm.GFP.KERNEL, 0)
    view = machine.view(page.address, 4096)
    view[:] = b"s" * 4096
other = [rm.Machine(1, "4M") for _ in range(3)]
print("alive", flush=True)
print(view[0])
""")
    assert child.returncode == -11, child.stderr
    assert child.stdout == "alive\n"


def test_the_last_view_gives_the_addresses_back():
    before = footprint()
    size = address_space()
    with rm.Machine(1, "64M", **SMALL) as machine:
        page = machine.alloc_pages(GFP.KERNEL, 0)
        view = machine.view(page.address, 4096)
    assert footprint()["shmem"] == before["shmem"], "the memory goes with the machine"
    assert address_space() - size > 32 << 20
    view.release()
    assert footprint() == before
    assert address_space() - size < 32 << 20


def test_a_machine_nobody_holds_goes():
    before = footprint()
    machine = rm.Machine(1, "4M", **SMALL)
    with_zeros(machine)
    machine.sysctl["vm.min_free_kbytes"] = 200
    machine.vmstat["pgfree"]
    machine.procfs["/proc/zoneinfo"]
    del machine
    assert footprint() == before


@pytest.mark.parametrize("what", ["page", "pages", "view", "method", "zone"])
def test_what_outlives_a_dropped_machine_keeps_its_memory(what):
    before = footprint()
    machine = rm.Machine(1, "4M", **SMALL)
    page = machine.alloc_pages(GFP.KERNEL, 0)
    kept = {
        "page": page,
        "pages": machine.alloc_pages_bulk(GFP.KERNEL, 4),
        "view": machine.view(page.address, 64),
        "method": machine.get_zeroed_page,
        "zone": machine.nodes[0].zones[0],
    }[what]
    del machine, page
    gc.collect()
    if what == "page":
        assert kept.refcount == 1
        kept.get()
        kept.put()
        with pytest.raises(ValueError, match="gone"):
            kept.zone
        with pytest.raises(ValueError, match="gone"):
            kept.mappings
    elif what == "pages":
        assert [page.refcount for page in kept] == [1] * 4
    elif what == "view":
        kept[:] = b"a" * 64
        assert bytes(kept) == b"a" * 64
    elif what == "method":
        assert kept(GFP.KERNEL) % 4096 == 0
        with pytest.raises(rm.OutOfMemory) as caught:
            while True:
                kept(GFP.KERNEL)
        assert "page allocation failure" in str(caught.value)
        del caught
    else:
        assert kept.free_pages > 0
    del kept
    assert footprint() == before
