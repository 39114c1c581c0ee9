"""The one lock order of the kernel side, checked on machines with debug=1."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from compiled import build

import realmem as rm

SOURCE = '''# cython: language_level=3
from realmem._core.machine cimport MachineCore
from realmem._kernel.host_calls cimport mutex, mutex_lock, mutex_trylock, mutex_unlock
from realmem._kernel.percpu cimport get_cpu_area
from realmem.compiler cimport spin_lock, spin_trylock, spin_unlock
from realmem.types cimport zone


def areas_in_zone(MachineCore core):
    spin_lock(&core.m.zones[0].lock)
    spin_lock(&core.m.areas_lock)
    spin_unlock(&core.m.areas_lock)
    spin_unlock(&core.m.zones[0].lock)


def twice(MachineCore core):
    spin_lock(&core.m.areas_lock)
    spin_lock(&core.m.areas_lock)


def zone_in_areas(MachineCore core, int times):
    cdef int i
    for i in range(times):
        spin_lock(&core.m.areas_lock)
        spin_lock(&core.m.zones[0].lock)
        spin_unlock(&core.m.areas_lock)
        spin_unlock(&core.m.zones[0].lock)


def areas(MachineCore core, bint listed):
    get_cpu_area(core.m)                # the first; the next is the shared one
    if listed:
        spin_lock(&core.m.areas_lock)
    spin_lock(&core.m.areas.lock)
    spin_lock(&core.m.areas.next.lock)
    spin_unlock(&core.m.areas.next.lock)
    spin_unlock(&core.m.areas.lock)
    if listed:
        spin_unlock(&core.m.areas_lock)


def two_areas(MachineCore core):
    areas(core, False)


def tried(MachineCore core):
    spin_lock(&core.m.zones[0].lock)
    got = spin_trylock(&core.m.areas_lock)
    spin_unlock(&core.m.areas_lock)
    spin_unlock(&core.m.zones[0].lock)
    return got
'''


@pytest.fixture(scope="module")
def locks(tmp_path_factory):
    return build(tmp_path_factory.mktemp("locks"), "locks", SOURCE)


def died(locks, debug, what):
    text = f"""
import sys
sys.path.insert(0, {str(Path(locks.__file__).parent)!r})
import realmem as rm, locks
with rm.Machine(nodes=1, memory="16M", debug={debug}) as machine:
    locks.{what}(machine.core)
print("done")
"""
    return subprocess.run([sys.executable, "-c", text], capture_output=True, text=True,
                          check=False)


@pytest.mark.crash
@pytest.mark.parametrize(
    ("what", "words"),
    [("areas_in_zone", "machine.areas_lock is wanted by one who holds zone.lock"),
     ("twice", "machine.areas_lock is wanted by one who holds machine.areas_lock"),
     ("two_areas", "cpu_area.lock is wanted by one who holds cpu_area.lock")],
)
def test_who_takes_locks_in_another_order_dies_by_name(locks, what, words):
    done = died(locks, 1, what)
    assert done.returncode == -signal.SIGABRT, done.stderr
    assert f"realmem: kernel BUG: lock order: {words}" in done.stderr


def test_without_debug_nothing_is_checked(locks):
    done = died(locks, 0, "areas_in_zone")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "done\n"


def test_what_is_in_order_or_only_tried_passes(locks):
    with rm.Machine(nodes=1, memory="16M", debug=1) as machine:
        locks.zone_in_areas(machine.core, 100)      # given back in any order, nothing is left over
        locks.areas(machine.core, True)
        assert locks.tried(machine.core)
        locks.zone_in_areas(machine.core, 100)
        machine.check()


def test_the_order_is_that_of_the_rules():
    folder = Path(rm.get_include()) / "realmem" / "_kernel"
    rules = (folder / "RULES.md").read_text()
    order = rules[rules.index("MemoryMap.lock"):]
    source = (folder / "lock_order.pyx").read_text()
    names = re.findall(r'"([\w.]+[._]lock)"', source)
    assert len(names) == 11
    places = [order.index(name.split(".")[-1] if "depot" in name else name) for name in names]
    assert places == sorted(places)


def test_threads_that_fault_fork_and_exit_take_locks_in_order():
    with rm.Machine(nodes=1, memory="64M", window="1G", debug=1) as machine:
        def live(seed):
            p = machine.spawn()
            for i in range(20):
                a = p.mmap(None, 64 * rm.PAGE_SIZE, rm.PROT_READ | rm.PROT_WRITE,
                           (rm.MAP_SHARED if (seed + i) % 2 else rm.MAP_PRIVATE)
                           | rm.MAP_ANONYMOUS)
                p.touch(a, 64 * rm.PAGE_SIZE, write=True)
                child = p.fork()
                child.touch(a, 64 * rm.PAGE_SIZE, write=True)
                p.madvise(a, 32 * rm.PAGE_SIZE, rm.MADV_DONTNEED)
                child.exit()
                p.wait()
                p.munmap(a, 64 * rm.PAGE_SIZE)
            p.exit()

        threads = [threading.Thread(target=live, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        machine.check()
