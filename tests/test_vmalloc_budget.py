"""vmalloc under the host's limit of mappings: the budget, flushes, faults that refill."""

from __future__ import annotations

import pytest

import realmem as rm
from realmem.layout import MAP_ANONYMOUS, MAP_PRIVATE, PAGE_SIZE
from realmem.machine import Machine

SCATTER = """
import os, realmem as rm
def maps():
    return sum(1 for _ in open("/proc/self/maps"))
limit = int(open("/proc/sys/vm/max_map_count").read())
def scatter(machine):
    '''Leave no two free frames side by side.'''
    held = []
    try:
        while True:
            held.extend(machine.alloc_pages_bulk(rm.GFP_KERNEL, 4096))
            if len(held) % 4096:
                break
    except rm.OutOfMemory:
        pass
    while True:
        try:
            held.append(machine.alloc_pages(rm.GFP_KERNEL | rm.GFP.MEMALLOC, 0))
        except rm.OutOfMemory:
            break
    held.sort(key=lambda page: page.pfn)
    for page in held[::2]:
        machine.free_page(page)
    machine.drain_all_pages()
    assert all(zone.free_area[1] == 0 for zone in machine.nodes[0].zones)
    return held[1::2]
"""


def test_64_mib_of_scattered_frames_beside_a_thousand_areas(python):
    """In a child, so that the count of mappings is its own."""
    done = python(SCATTER + """
import numpy
machine = rm.Machine(nodes=1, memory="400M")
held = scatter(machine)
areas = [machine.vmalloc(4096 * (1 + i % 2)) for i in range(1000)]
for i, area in enumerate(areas):
    machine.view(area, 4)[:] = i.to_bytes(4, "little")
big = machine.vmalloc("64M")
pfns = [machine.vmalloc_to_pfn(big + i * 4096) for i in range(16384)]
assert all(two != one + 1 for one, two in zip(pfns, pfns[1:]))
words = numpy.frombuffer(machine.view(big, 64 << 20), dtype=numpy.uint64)
words[:] = numpy.arange(8 << 20)
at_most = limit // 2 + 300
assert maps() < at_most, maps()
machine.check()
more = machine.vmalloc("80M")       # with this, the budget is not enough: faults bring it in
again = numpy.frombuffer(machine.view(more, 80 << 20), dtype=numpy.uint64)
again[:] = 5
assert maps() < at_most, maps()
assert (words == numpy.arange(8 << 20)).all() and (again == 5).all()
for i, area in enumerate(areas):
    assert machine.view(area, 4) == i.to_bytes(4, "little")
assert maps() < at_most, maps()
assert machine.hoststat["sigsegv"] > 0
machine.check()
del words, again
for area in [big, more, *areas]:
    machine.vfree(area)
machine.check()
assert maps() < 2000
machine.close()
print("done", flush=True)
""", timeout=300)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


@pytest.mark.parametrize("budget", [1, 40, 300])
def test_a_small_budget(budget):
    """Reversed frames: each page is a host mapping of its own."""
    with Machine(nodes=1, memory="24M", window="1G", host_vmas=budget) as machine:
        others = machine.hoststat["host_vmas"]
        pages = sorted(machine.alloc_pages_bulk(rm.GFP_KERNEL, 900), key=lambda page: -page.pfn)
        area = machine.vmap(pages)
        view = machine.view(area, 900 * PAGE_SIZE)
        for turn in range(3):
            for i in range(900):
                assert view[i * PAGE_SIZE] == (turn and (i * 3 + turn - 1) % 256)
                view[i * PAGE_SIZE] = (i * 3 + turn) % 256
            machine.check()
        assert machine.hoststat["host_vmas"] <= others + budget + 70
        assert machine.hoststat["map_flush"] > 0 and machine.hoststat["sigsegv"] > 900
        assert [machine.view(page.address, 1)[0] for page in pages] == [
            (i * 3 + 2) % 256 for i in range(900)]
        del view
        machine.vunmap(area)
        machine.check()


def test_windows_give_way_first():
    """What a process's window has mapped is flushed before what is mapped of vmalloc's."""
    with Machine(1, "24M", window="1G", host_vmas=600, faults="sigsegv") as machine:
        process = machine.spawn()
        addr = process.mmap(None, 1200 * PAGE_SIZE, 3, MAP_PRIVATE | MAP_ANONYMOUS)
        view = process.view(addr, 1200 * PAGE_SIZE)
        for i in range(0, 1000, 2):
            view[i * PAGE_SIZE] = 1
        pages = sorted(machine.alloc_pages_bulk(rm.GFP_KERNEL, 400), key=lambda page: -page.pfn)
        area = machine.vmap(pages)
        faults = machine.hoststat["sigsegv"]
        memory = machine.view(area, 400 * PAGE_SIZE)
        for i in range(400):
            memory[i * PAGE_SIZE] = 2
        assert machine.hoststat["sigsegv"] - faults < 250
        assert all(view[i * PAGE_SIZE] == (i % 2 == 0) for i in range(1000))
        assert all(memory[i * PAGE_SIZE] == 2 for i in range(400))
        machine.check()
        del view, memory
        machine.vunmap(area)


def test_addresses_run_out_and_a_purge_brings_them_back():
    with Machine(nodes=1, memory="24M", window="1G", host_vmas=3000) as machine:
        page = machine.alloc_pages(rm.GFP_KERNEL, 0)
        areas = []
        with pytest.raises(rm.OutOfMemory, match="1024 MiB of addresses"):
            while True:
                areas.append(machine.vmap([page] * 5000))
        assert len(areas) == (1 << 18) // 5001
        for area in areas[:3]:              # less than waits for a purge by itself
            machine.vunmap(area)
        purges = machine._vmalloc.nr_purges
        assert machine.vmap([page] * 5000) == areas[0]
        assert machine._vmalloc.nr_purges == purges + 1
        machine.check()
        machine.view(areas[-1] + 4999 * PAGE_SIZE, 1)[0] = 8
        assert machine.view(page.address, 1)[0] == 8


def test_at_the_hosts_own_limit(python):
    """Somebody else has taken every mapping: vmalloc memory still works, by faults."""
    done = python("""
import mmap, realmem as rm
machine = rm.Machine(nodes=1, memory="24M", window="1G", host_vmas=1 << 20)
pages = sorted(machine.alloc_pages_bulk(rm.GFP_KERNEL, 400), key=lambda page: -page.pfn)
area = machine.vmap(pages[:1])
hold, views = [], []
try:
    while True:
        region = mmap.mmap(-1, 1 << 26)
        hold.append(region)
        import ctypes
        libc = ctypes.CDLL(None, use_errno=True)
        at = ctypes.addressof(ctypes.c_char.from_buffer(region))
        for i in range(0, 1 << 26, 8192):
            if libc.mprotect(ctypes.c_void_p(at + i), 4096, 1):
                raise MemoryError
except (MemoryError, OSError):
    pass
for i in range(0, 600 * 8192, 8192):        # room for some
    libc.mprotect(ctypes.c_void_p(at + i), 4096, 3)
big = machine.vmap(pages)
memory = machine.view(big, 400 * 4096)
for turn in range(2):
    for i in range(400):
        memory[i * 4096] = i % 256
assert [memory[i * 4096] for i in range(400)] == [i % 256 for i in range(400)]
machine.check()
del memory
machine.vunmap(big)
machine.vunmap(area)
machine.check()
print("done", flush=True)
import os
os._exit(0)
""", timeout=200)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


def test_memory_comes_back_where_a_fault_wants_it():
    """A flush of everything, then faults: runs come back at once."""
    with Machine(nodes=1, memory="24M", window="1G", host_vmas=1) as machine:
        area = machine.vmalloc("4M")
        view = machine.view(area, 4 << 20)
        view[:] = b"\x5a" * (4 << 20)
        fills = machine.hoststat["map_fill"]
        assert fills < 60
        assert bytes(view) == b"\x5a" * (4 << 20)
        machine.check()
        del view
        machine.vfree(area)


def test_storm(python, soak_factor):
    """Two threads that store, free and fault under a tiny budget, and one that recounts."""
    done = python(f"SECONDS = {3 * soak_factor}" + """
import random, threading, time
import realmem as rm
machine = rm.Machine(nodes=2, memory="24M", window="1G", host_vmas=120)
pages = list(machine.alloc_pages_bulk(rm.GFP_KERNEL, 600))
process = machine.spawn()
window = process.view(process.mmap(None, 600 * 4096, 3, 0x22), 600 * 4096)
end = time.monotonic() + SECONDS
errors, counts = [], [0, 0, 0]

def work(who):
    dice = random.Random(who)
    live = []
    try:
        while time.monotonic() < end:
            counts[who] += 1
            what = dice.random()
            if what < 0.35 and len(live) < 12:
                n = dice.randint(1, 90)
                live.append((machine.vmalloc_node(n * 4096, dice.randint(0, 1)), n, {}, None))
            elif what < 0.5 and len(live) < 12:
                own = dice.sample(pages[who::2], dice.randint(1, 60))
                live.append((machine.vmap(own), len(own), {}, own))
            elif what < 0.65 and live:
                addr, n, wrote, own = live.pop(dice.randrange(len(live)))
                (machine.vunmap if own else machine.vfree)(addr)
            elif live:
                addr, n, wrote, own = dice.choice(live)
                view = machine.view(addr, n * 4096)
                for _ in range(30):
                    i = dice.randrange(n)
                    if own:
                        view[i * 4096 + who] = 1 + who
                        assert machine.view(own[i].address, 4096)[who] == 1 + who
                        continue
                    if i in wrote:
                        assert view[i * 4096] == wrote[i]
                    wrote[i] = dice.randrange(256)
                    view[i * 4096] = wrote[i]
                    window[dice.randrange(600) * 4096] = 1
            if dice.random() < 0.01:
                machine.vm_unmap_aliases()
    except BaseException as error:
        errors.append(error)
    for addr, n, wrote, own in live:
        (machine.vunmap if own else machine.vfree)(addr)

def recount():
    try:
        while time.monotonic() < end:
            machine.check()
            machine.procfs["/proc/vmallocinfo"]
            counts[2] += 1
    except BaseException as error:
        errors.append(error)

threads = [threading.Thread(target=work, args=(who,)) for who in range(2)]
threads.append(threading.Thread(target=recount))
for thread in threads: thread.start()
for thread in threads: thread.join()
assert errors == [], errors
machine.check()
assert machine._vmalloc.nr_pages == 0
assert machine.hoststat["sigsegv"] > 100 and machine.hoststat["map_flush"] > 20
assert min(counts) > 0, counts
print("done", flush=True)
""", timeout=600)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
