"""
How machines begin and end: closed, dropped, inherited, interrupted, many at once.

What the host gave is counted before and after: descriptors, mappings, shared memory, children.
"""

from __future__ import annotations

import gc
import random
import threading
from itertools import pairwise
from pathlib import Path

import pytest

import realmem as rm
from realmem import GFP

SMALL = {"zones": {"DMA": "0", "DMA32": "0"}}


def footprint():
    """What this process holds of machines: descriptors, mappings, resident shared pages."""
    gc.collect()
    maps = [line.split(None, 5) for line in Path("/proc/self/maps").read_text().splitlines()]
    status = Path("/proc/self/status").read_text().split()
    return {
        "fds": len(list(Path("/proc/self/fd").iterdir())),
        "memfds": sum("memfd:realmem" in line[-1] for line in maps),
        "shmem": int(status[status.index("RssShmem:") + 1]),
    }


def address_space():
    """Count bytes of address space."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * 4096


def with_zeros(machine, n=3):
    return [machine.get_zeroed_page(GFP.KERNEL) for _ in range(n)]


# ---- closing ----

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


# ---- threads ----

def test_many_threads_begin_and_end():
    """A thread's lists go back to the zones when it ends."""
    with rm.Machine(2, "8M", **SMALL) as machine:
        with_zeros(machine)
        machine.drain_all_pages()
        free = [node.free_pages for node in machine.nodes]
        errors = []

        def work(seed):
            rng = random.Random(seed)
            try:
                kept = []
                for _ in range(100):
                    order = rng.choice((0, 1, 2, 3))
                    kept.append((machine.alloc_pages(GFP.ATOMIC, order), order))
                    if len(kept) > 8:
                        machine.free_pages(*kept.pop(0))
                for one in kept:
                    machine.free_pages(*one)
            except BaseException as error:
                errors.append(error)

        for round_ in range(8):
            threads = [threading.Thread(target=work, args=(round_ * 100 + i,)) for i in range(12)]
            for thread in threads:
                thread.start()
            machine.check()
            for thread in threads:
                thread.join()
        assert errors == []
        # Nothing is drained here: ended threads left nothing behind.
        wait_for(lambda: [node.free_pages for node in machine.nodes] == free)
        machine.check()
        assert machine.vmstat["pgfree"] >= 8 * 12 * 100


def wait_for(condition, seconds=20):
    """Give what happens at the end of a native thread, after join(), time to happen."""
    pause = threading.Event()
    for _ in range(int(seconds * 100)):
        if condition():
            return
        pause.wait(0.01)
    raise AssertionError("it did not happen")


def test_pages_are_freed_by_another_thread():
    with rm.Machine(1, "8M", **SMALL) as machine:
        boot = machine.nodes[0].zones[0].free_area
        pages = [machine.alloc_pages(GFP.KERNEL, order) for order in (0, 1, 3, 5, 9)]

        def free():
            for page in pages:
                machine.free_pages(page, page.order)

        thread = threading.Thread(target=free)
        thread.start()
        thread.join()
        machine.drain_all_pages()
        machine.check()
        assert machine.nodes[0].zones[0].free_area == boot


def test_threads_that_outlive_machines():
    """A thread's per-CPU lists of a closed machine serve the next one, larger or smaller."""
    go, done = threading.Barrier(3), threading.Barrier(3)
    current = []
    errors = []

    def work():
        try:
            for _ in range(12):
                go.wait(60)
                machine = current[-1]
                for order in (0, 1, 2, 3, 5):
                    machine.free_pages(machine.alloc_pages(GFP.KERNEL, order), order)
                machine.alloc_pages(GFP.KERNEL, 0)      # left to the machine's end
                done.wait(60)
        except BaseException as error:
            errors.append(error)
            go.abort()
            done.abort()

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for turn in range(12):
        with rm.Machine((1, 6, 2, 4)[turn % 4], "4M", **SMALL) as machine:
            current.append(machine)
            go.wait(60)
            done.wait(60)
            machine.check()
            assert machine.vmstat["numa_hit"] == 12
    for thread in threads:
        thread.join()
    assert errors == []


def test_threads_end_after_their_machine():
    before = footprint()
    leave = threading.Event()
    ready = threading.Barrier(9)
    machine = rm.Machine(2, "4M", **SMALL)
    alloc = machine.alloc_pages

    def work(alloc):
        alloc(GFP.KERNEL, 0)
        del alloc
        ready.wait(60)
        leave.wait(60)

    threads = [threading.Thread(target=work, args=(alloc,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    ready.wait(60)
    machine.close()
    other = rm.Machine(2, "4M", **SMALL)        # may lie where the first one lay
    other.alloc_pages(GFP.KERNEL, 0)
    leave.set()
    for thread in threads:
        thread.join()
    other.check()
    other.close()
    del machine, other, alloc
    wait_for(lambda: footprint() == before)


@pytest.mark.crash
def test_closing_while_others_are_inside(python):
    """Calls of other threads end as calls on a closed machine do, not in a crash."""
    child = python("""
import random, threading, sys
import realmem as rm
from realmem import GFP
sys.setswitchinterval(1e-5)
outcomes = set()
def work(machine, how, ready):
    ready.wait()
    try:
        while True:
            if how == 0:
                machine.check()
            elif how == 1:
                machine.free_pages_bulk(machine.alloc_pages_bulk(GFP.KERNEL, 500))
            elif how == 2:
                machine.free_pages(machine.alloc_pages(GFP.KERNEL | GFP.ZERO, 9), 9)
            else:
                machine.drain_all_pages()
    except ValueError as error:
        outcomes.add(str(error))
    except BaseException as error:
        outcomes.add(repr(error))
for turn in range(25):
    machine = rm.Machine(1, "12M")
    ready = threading.Barrier(5)
    threads = [threading.Thread(target=work, args=(machine, how, ready)) for how in range(4)]
    for thread in threads:
        thread.start()
    ready.wait()
    threading.Event().wait(random.Random(turn).random() * 0.01)
    if turn % 2:
        machine.close()
    else:
        with machine:
            pass
    for thread in threads:
        thread.join()
print(outcomes)
""")
    assert child.returncode == 0, child.stderr
    assert child.stdout == "{'this machine is closed'}\n"


# ---- os.fork ----

def test_a_child_cannot_use_the_machine(python):
    child = python("""
import os, sys, traceback
import realmem as rm
from realmem import GFP
machine = rm.Machine(2, "4M", page_owner=True)
page = machine.alloc_pages(GFP.KERNEL, 0)
pages = machine.alloc_pages_bulk(GFP.KERNEL, 4)
view = machine.view(page.address, 4096)
view[:4] = b"mine"
zone = machine.nodes[0].zones[0]
before = zone.free_area
context = machine.atomic_context()
pid = os.fork()
if pid == 0:
    status = 1
    try:
        calls = [
            lambda: machine.alloc_pages(GFP.KERNEL, 0),
            lambda: machine.alloc_pages_node(0, GFP.KERNEL, 0),
            lambda: machine.alloc_pages_bulk(GFP.KERNEL, 4),
            lambda: machine.alloc_pages_exact(4096, GFP.KERNEL),
            lambda: machine.get_free_pages(GFP.KERNEL, 0),
            lambda: machine.get_zeroed_page(GFP.KERNEL),
            lambda: machine.free_pages(page, 0),
            lambda: machine.free_page(page),
            lambda: machine.free_pages_bulk(pages),
            machine.drain_all_pages, machine.check, machine.show_mem,
            lambda: machine.view(machine.va(0), 1),
            lambda: machine.va(0), lambda: machine.pfn_to_page(0),
            lambda: machine.vmstat["pgfree"], lambda: machine.procfs["/proc/buddyinfo"],
            lambda: page.refcount, lambda: page.address, lambda: page.node, page.get, page.put,
            lambda: zone.free_pages, lambda: machine.nodes[1].stat,
            context.__enter__, machine.__enter__,
            lambda: machine.sysctl.__setitem__("vm.min_free_kbytes", 1000),
        ]
        for i, call in enumerate(calls):
            try:
                call()
            except ValueError as error:
                assert "os.fork" in str(error), (i, error)
            else:
                raise AssertionError(i)
        machine.close()
        # A machine of its own works, with threads and without.
        import threading
        with rm.Machine(2, "4M") as own:
            def work():
                for order in (0, 3, 5):
                    own.free_pages(own.alloc_pages(GFP.KERNEL, order), order)
            threads = [threading.Thread(target=work) for _ in range(3)]
            for thread in threads: thread.start()
            work()
            own.drain_all_pages()
            for thread in threads: thread.join()
            own.check()
        del machine, page, pages, zone
        status = 0
    except BaseException:
        traceback.print_exc()
    sys.stderr.flush()
    os._exit(status)
assert os.waitpid(pid, 0)[1] == 0
machine.check()
assert bytes(view[:4]) == b"mine" and zone.free_area == before and page.refcount == 1
view.release()
machine.free_page(page); machine.free_pages_bulk(pages)
machine.check(); machine.close()
print("well")
""")
    assert child.stdout == "well\n", child.stderr


def test_a_child_that_exits_normally_harms_nothing(python):
    """Finalizers run in the child; the parent's memory is not theirs."""
    child = python("""
import os, sys
import realmem as rm
machine = rm.Machine(1, "4M")
page = machine.alloc_pages(rm.GFP.KERNEL, 0)
machine.view(page.address, 4)[:] = b"mine"
pid = os.fork()
if pid == 0:
    sys.exit(0)
assert os.waitpid(pid, 0)[1] == 0
for i in range(5):
    if os.fork() == 0:
        with machine_context if i > 9 else rm.Machine(1, "4M") as own:
            own.alloc_pages(rm.GFP.KERNEL, 0)
        machine.close()
        sys.exit(0)
    assert os.wait()[1] == 0
machine.check()
assert bytes(machine.view(page.address, 4)) == b"mine"
machine.close()
print("well")
""")
    assert child.stdout == "well\n", child.stderr


@pytest.mark.crash
def test_fork_while_threads_allocate_and_end(python):
    """No lock that another thread held at the fork is left locked in the child."""
    child = python("""
import os, sys, threading, signal
import realmem as rm
from realmem import GFP
machine = rm.Machine(1, "8M")
stop = False
def short():
    machine.free_page(machine.alloc_pages(GFP.KERNEL, 0))
def spawn():
    while not stop:
        threads = [threading.Thread(target=short) for _ in range(4)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
workers = [threading.Thread(target=spawn) for _ in range(2)]
for worker in workers: worker.start()
for turn in range(60):
    pid = os.fork()
    if pid == 0:
        signal.alarm(60)
        with rm.Machine(1, "4M") as own:
            own.free_page(own.alloc_pages(GFP.KERNEL, 0))
            own.drain_all_pages()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0, turn
stop = True
for worker in workers: worker.join()
machine.check()
print("well")
""")
    assert child.stdout == "well\n", child.stderr


# ---- construction that fails ----

@pytest.mark.parametrize("options", [
    {"nodes": 0}, {"nodes": -1}, {"nodes": 65}, {"nodes": []}, {"memory": 0},
    {"memory": -4096}, {"memory": 4097}, {"memory": "4K"}, {"memory": "12 parsecs"},
    {"memory": ""}, {"nodes": [rm.NodeSpec(0)]}, {"nodes": [rm.NodeSpec("4M", host_node=99)]},
    {"nodes": [rm.NodeSpec("4M", cpus=[9999])]},
    {"nodes": [rm.NodeSpec("4M", cpus=[0]), rm.NodeSpec("4M", cpus=[0])]},
    {"nodes": [rm.NodeSpec("4M", distance=[20])]},
    {"nodes": [rm.NodeSpec("4M", distance=[10, 20])]},
    {"zones": {"Highmem": "4M"}}, {"zones": {"DMA": "1M"}}, {"zones": {"DMA": "5G"}},
    {"zones": {"DMA": "-4M"}}, {"zones": {"Movable": "101%"}}, {"zones": {"Movable": "x%"}},
    {"backing": "5K"}, {"debug": 3}, {"debug": -1}, {"cpus": 0}, {"cpus": -3},
], ids=str)
def test_machines_that_cannot_be(options):
    before = footprint()
    with pytest.raises(ValueError):
        rm.Machine(**{"memory": "4M", **options})
    assert footprint() == before


@pytest.mark.parametrize("options", [
    {"nodes": "two"}, {"nodes": True}, {"nodes": 1.5}, {"nodes": [4]}, {"nodes": {"a": 1}},
    {"memory": 1.5}, {"memory": None}, {"memory": True}, {"memory": b"4M"},
    {"nodes": [rm.NodeSpec(1.5)]}, {"nodes": [rm.NodeSpec("4M", cpus=["0"])]},
    {"zones": "DMA"}, {"zones": {"DMA": 1.5}}, {"zones": {"DMA": None}},
    {"cpus": 1.5}, {"cpus": "2"}, {"cpus": True}, {"colour": "red"}, {"window_size": 1},
], ids=str)
def test_wrong_types_and_unknown_options(options):
    before = footprint()
    with pytest.raises(TypeError):
        rm.Machine(**{"memory": "4M", **options})
    assert footprint() == before


@pytest.mark.crash
def test_an_interrupt_during_construction_leaves_nothing(python):
    child = python("""
import gc, os, signal, time
import realmem as rm
from pathlib import Path
def left():
    gc.collect()
    maps = Path("/proc/self/maps").read_text()
    return (len(os.listdir("/proc/self/fd")), maps.count("memfd:realmem"))
def interrupt(number, frame):
    raise KeyboardInterrupt
signal.signal(signal.SIGALRM, interrupt)
begin = time.perf_counter()
rm.Machine(2, "4M").close()
rm.Machine(2, "4M").close()
begin = time.perf_counter()
rm.Machine(2, "4M").close()
took = time.perf_counter() - begin
before, interrupted = left(), 0
for i in range(80):
    machine = None
    try:
        signal.setitimer(signal.ITIMER_REAL, took * (i + 1) / 60)
        machine = rm.Machine(2, "4M")
        signal.setitimer(signal.ITIMER_REAL, 0)
        machine.check()
        machine.close()
    except KeyboardInterrupt:
        interrupted += 1
    signal.setitimer(signal.ITIMER_REAL, 0)
    machine = None
    assert left() == before, (i, left(), before)
    try:
        raise SystemExit(f"a child is left: {os.waitpid(-1, os.WNOHANG)}")
    except ChildProcessError:
        pass
assert interrupted > 10, interrupted
with rm.Machine(2, "4M") as machine:
    machine.check()
print("well")
""")
    assert child.stdout == "well\n", child.stderr


# ---- odd shapes ----

@pytest.mark.parametrize(("sizes", "zones"), [
    (["256K"], {}),
    (["260K"], {"DMA": "0", "DMA32": "0"}),
    (["4M", "256K", "4100K"], {"DMA": "4M", "DMA32": "8M"}),
    (["5M", "3M", "7M"], {"DMA": "0", "DMA32": "8M", "Movable": "50%"}),
    (["8M"], {"DMA": "0", "DMA32": "0", "Movable": "100%"}),
    (["9M", "8M"], {"Movable": "100%"}),
    (["18M"], {"DMA": "0", "DMA32": "0", "Movable": "50%"}),
    (["9M", "17M", "10M"], {"DMA": "0", "DMA32": "12M", "Movable": "60%"}),
    (["64M"], {"DMA": "4M", "DMA32": "4M", "Movable": "97%"}),
    (["300M"], {"DMA": "0", "DMA32": "0", "Movable": "99%"}),
    (["16M", 0, "16M"], {"DMA": "0", "DMA32": "20M"}),
    ([0, "8M"], {}),
    (["12M"], {"DMA": "8M", "DMA32": "8M", "Movable": "4M"}),
    (["12M"], {"DMA": "4M", "DMA32": "8M", "Movable": "1000M"}),
], ids=str)
def test_odd_shapes(sizes, zones):
    """Each frame is allocatable once, in its own zone, and comes back."""
    with rm.Machine([rm.NodeSpec(size) for size in sizes], zones=zones) as machine:
        machine.check()
        boot = [zone.free_area for node in machine.nodes for zone in node.zones]
        managed = sum(zone.managed_pages for node in machine.nodes for zone in node.zones)
        present = sum(zone.present_pages for node in machine.nodes for zone in node.zones)
        assert present == sum(node.memory for node in machine.nodes) >> 12
        assert sum(sum(n << o for o, n in enumerate(area)) for area in boot) == managed
        spans = sorted((zone.start_pfn, zone.spanned_pages)
                       for node in machine.nodes for zone in node.zones)
        assert all(a + n <= b for (a, n), (b, _) in pairwise(spans))
        pages = machine.alloc_pages_bulk(GFP.HIGHUSER_MOVABLE | GFP.MEMALLOC, present)
        assert len(pages) == managed
        machine.check()
        with pytest.raises(rm.OutOfMemory):
            machine.alloc_pages(GFP.HIGHUSER_MOVABLE | GFP.MEMALLOC, 0)
        for node in machine.nodes:
            inside = range(node.start_pfn, node.end_pfn)
            there = [page for page in pages if page.pfn in inside]
            assert len(there) == sum(zone.managed_pages for zone in node.zones)
            for page in there[::97]:
                assert page.node == node.id
                assert page.zone in node.zones
                zone = page.zone
                assert zone.start_pfn <= page.pfn < zone.start_pfn + zone.spanned_pages
        machine.free_pages_bulk(pages)
        machine.drain_all_pages()
        machine.check()
        assert [zone.free_area for node in machine.nodes for zone in node.zones] == boot
        str(machine.procfs["/proc/zoneinfo"])


def test_no_kernel_memory_at_all():
    """Movable takes everything: nothing is left for GFP_KERNEL."""
    with rm.Machine(1, "8M", zones={"DMA": "0", "DMA32": "0", "Movable": "100%"}) as machine:
        assert [zone.name for zone in machine.nodes[0].zones] == ["Movable"]
        for gfp in (GFP.KERNEL, GFP.ATOMIC, GFP.KERNEL | GFP.NOFAIL, GFP.DMA):
            with pytest.raises(rm.OutOfMemory) as caught:
                machine.alloc_pages(gfp, 0)
            assert "Movable" in str(caught.value)
        machine.free_page(machine.alloc_pages(GFP.HIGHUSER_MOVABLE, 0))
        machine.check()
