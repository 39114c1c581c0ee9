"""Constructors that turn against their cache, threads that end while a cache does, misuse."""

from __future__ import annotations

import numpy as np
import pytest

import realmem as rm
from realmem import SLAB, AllocatorError

# Each ends the interpreter if something is wrong: so in children of their own.
CONSTRUCTOR = """
import os, sys
import realmem as rm

machine = rm.Machine(nodes=1, memory="16M")
calls = []

def ctor(view):
    view.release()
    calls.append(1)
    if len(calls) == 3:
        {act}

cache = machine.kmem_cache_create("reentered", 64, ctor=ctor)
for attempt in (cache.alloc, lambda: cache.alloc_bulk(3)):
    calls.clear()
    try:
        print(type(attempt()).__name__)
    except (ValueError, rm.AllocatorError) as error:
        print(type(error).__name__, str(error).split(":")[0].split(";")[0])
{after}
"""


@pytest.mark.parametrize(
    ("act", "after", "expected"),
    [
        (
            "cache.destroy()",
            "machine.check()\nassert cache.num_objs == 0\nmachine.close()",
            ["AllocatorError cache 'reentered' is in use"] * 2,
        ),
        ("machine.close()", "", ["ValueError this machine is closed"] * 2),
        ("cache.shrink()", "machine.check()\nmachine.close()", ["int", "ndarray"]),
    ],
)
def test_constructor_that_ends_its_cache(python, act, after, expected):
    done = python(CONSTRUCTOR.format(act=act, after=after))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == expected


def test_constructor_that_forks(python):
    """The memory of what is being constructed is not there in the child."""
    done = python("""
import os
import realmem as rm

machine = rm.Machine(nodes=1, memory="16M")
pids = []

def ctor(view):
    if not pids:
        pids.append(os.fork())

cache = machine.kmem_cache_create("forks", 64, ctor=ctor)
try:
    cache.alloc_bulk(3)
except ValueError as error:
    os._exit(7 if "inherited over os.fork()" in str(error) else 8)
status = os.waitpid(pids[0], 0)[1]
assert os.waitstatus_to_exitcode(status) == 7, status
machine.check()
machine.close()
""")
    assert done.returncode == 0, done.stderr


def test_cache_destroyed_as_a_thread_ends(python):
    """join() returns before the thread's area is given up, with its slabs on their way home."""
    done = python("""
import threading
import realmem as rm

def work(cache):
    cache.min_partial = 1 << 20         # what is empty stays until the thread ends
    cache.free_bulk(cache.alloc_bulk(6000))
    cache.min_partial = 0

with rm.Machine(nodes=1, memory="64M") as machine:
    for _ in range(60):
        cache = machine.kmem_cache_create("ends", 4096, flags=rm.SLAB.NO_MERGE)
        thread = threading.Thread(target=work, args=(cache,))
        thread.start()
        thread.join()
        cache.destroy()
    machine.check()
""")
    assert done.returncode == 0, done.stderr


def test_every_dedicated_cache_gives_objects(python):
    """Constructors of realmem's own are run by no other test."""
    done = python("""
import realmem as rm

with rm.Machine(nodes=1, memory="16M") as machine:
    for name in ("task_struct", "mm_struct", "vm_area_struct", "anon_vma", "anon_vma_chain"):
        cache = machine.kmem_caches[name]
        objects = cache.alloc_bulk(cache.objs_per_slab)
        if name == "anon_vma":
            for one in objects:
                assert not any(machine.view(int(one), cache.object_size))
        cache.free_bulk(objects)
    machine.check()
""")
    assert done.returncode == 0, done.stderr


@pytest.fixture
def machine():
    with rm.Machine(nodes=1, memory="16M") as made:
        yield made
        made.check()


@pytest.mark.parametrize("convert", [float, str, lambda addr: np.array([float(addr)])])
def test_bulk_free_of_what_is_no_address(machine, convert):
    cache = machine.kmem_cache_create("typed", 64, flags=SLAB.NO_MERGE)
    addr = cache.alloc()
    wrong = convert(addr)
    with pytest.raises(TypeError):
        cache.free_bulk(wrong if isinstance(wrong, np.ndarray) else [wrong])
    cache.free_bulk([np.int64(addr)])
    assert cache.alloc() == addr


def test_large_objects_are_not_freed_as_pages(machine):
    addr = machine.kmalloc(65536)
    for free in (lambda: machine.free_pages(addr, 4), machine.virt_to_page(addr).put):
        with pytest.raises(AllocatorError, match=r"came from kmalloc\(\)"):
            free()
    page = machine.virt_to_page(addr)
    page.get()
    page.put()
    machine.check()
    machine.kfree(addr)


def test_kvfree_tells_of_an_overrun():
    with rm.Machine(nodes=1, memory="16M", slab_debug="FZPU,kmalloc-64") as machine:
        addr = machine.kvmalloc(60)
        machine.view(addr, 64)[60] = 1
        with pytest.raises(AllocatorError, match="kmalloc Redzone overwritten"):
            machine.kvfree(addr)
        machine.kvfree(addr)            # what was wrong is repaired
        with pytest.raises(AllocatorError, match="double free"):
            machine.kvfree(addr)
        machine.check()


@pytest.mark.parametrize("name", ["\x00", "\x7f", "\ud800", ".", "..", "n" * 256, "é" * 128])
def test_names_that_no_file_can_have(machine, name):
    with pytest.raises(ValueError, match="can't be called"):
        machine.kmem_cache_create(name, 64)


def test_longest_name_is_exported(machine, tmp_path):
    machine.kmem_cache_create("é" * 127, 64, flags=SLAB.NO_MERGE)
    machine.procfs.export(tmp_path)
    assert (tmp_path / "sys/kernel/slab" / ("é" * 127)).is_dir()


def test_caches_come_and_go_where_one_may_sleep(machine):
    cache = machine.kmem_cache_create("sleeps", 48, flags=SLAB.NO_MERGE)
    calls = (
        lambda: machine.kmem_cache_create("other", 48, flags=SLAB.NO_MERGE),
        lambda: machine.kmem_cache_create("merged", 64),
        cache.shrink,
        cache.destroy,
    )
    with machine.atomic_context():
        for call in calls:
            with pytest.raises(rm.AtomicContextError):
                call()
    assert not {"other", "merged"} & set(machine.kmem_caches)
    cache.destroy()
