"""The option slab_debug: Linux's syntax, and what it does to caches."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

import realmem as rm
from realmem import SLAB
from realmem.layout import get_order
from realmem.slab_debug import parse_slab_debug
from realmem.slabcalc import DEBUG_FLAGS, KMALLOC_SIZES, geometry

F, Z, P, U = (SLAB.CONSISTENCY_CHECKS, SLAB.RED_ZONE, SLAB.POISON, SLAB.STORE_USER)
NONE = SLAB(0)


@pytest.mark.parametrize(("text", "flags"), [
    ("", {"any": NONE}),
    ("F", {"any": F}),
    ("FZPU", {"any": DEBUG_FLAGS}),
    ("fzpu", {"any": DEBUG_FLAGS}),
    ("-", {"any": NONE}),
    ("FZ-", {"any": NONE}),
    ("-P", {"any": P}),
    (",dentry", {"dentry": DEBUG_FLAGS, "dentry2": NONE, "dent": NONE}),
    ("P,dentry", {"dentry": P, "other": NONE}),
    ("FZ,kmalloc-*", {"kmalloc-8": F | Z, "kmalloc-rcl-8": F | Z, "dma-kmalloc-8": NONE}),
    ("Z,dentry,inode*", {"dentry": Z, "inode_cache": Z, "filp": NONE}),
    ("FZ;P,dentry", {"dentry": P, "filp": F | Z}),
    ("FZ;-,zs_handle,zspage", {"zs_handle": NONE, "zspage": NONE, "filp": F | Z}),
    ("U,a;Z,a,b", {"a": U, "b": Z}),            # the first block that names it
    ("F;Z", {"any": Z}),                        # the last one without names
    (";;F;;P,a;", {"any": F, "a": P}),
    ("F,*", {"any": F}),
    ("F,a*c", {"abb": F, "b": NONE}),           # what is behind the star is not looked at
    ("FO,kmalloc-8", {"kmalloc-8": F, "any": NONE}),
])
def test_syntax(text, flags):
    option = parse_slab_debug(text)
    for name, wanted in flags.items():
        assert option.flags_of(name) == wanted, name


@pytest.mark.parametrize("text", ["x", "F Z", "FZ;Q,dentry", "A", "T", "FA", "1"])
def test_unknown_letters(text):
    with pytest.raises(ValueError, match="slab_debug: "):
        rm.Machine(memory="16M", slab_debug=text)


@pytest.mark.parametrize("wrong", [None, 1, b"F", True])
def test_wrong_types(wrong):
    with pytest.raises(TypeError, match="slab_debug"):
        rm.Machine(memory="16M", slab_debug=wrong)


@given(st.text(alphabet="fzpuo-,;*ab", max_size=20))
def test_any_text_of_the_alphabet_is_read(text):
    try:
        option = parse_slab_debug(text)
    except ValueError as error:
        assert "unknown letter" in str(error) or "not there" in str(error)
    else:
        assert not option.flags_of("name") & ~DEBUG_FLAGS


def test_caches_of_every_kind_are_debugged():
    with rm.Machine(nodes=1, memory="32M", slab_debug="FZPU", debug=2) as machine:
        mine = machine.kmem_cache_create("mine", 40)
        plain = geometry(40, flags=mine.flags, nr_cpus=machine.cpus)
        assert (mine.size, mine.order) == (plain.size, plain.order)
        for cache in machine.kmem_caches.values():
            assert cache.flags & DEBUG_FLAGS == DEBUG_FLAGS and cache.capacity == 0
        assert machine.kmem_cache_create("more", 40).root != mine.root
        process = machine.spawn()
        addr = process.mmap(None, 1 << 20, rm.PROT_READ | rm.PROT_WRITE,
                            rm.MAP_PRIVATE | rm.MAP_ANONYMOUS)
        process.write(addr, b"x" * 100000)
        child = process.fork()
        child.write(addr, b"y" * 10000)
        with process.guard():
            view = process.view(addr, 1 << 20)
            view[500000] = 1                    # through the fault handler
            view.release()
        process.munmap(addr, 1 << 20)
        child.exit()
        process.exit()
        machine.vfree(machine.vmalloc(100000))
        held = [machine.kmalloc(size) for size in range(1, 8200, 91)]
        for addr in held:
            machine.kfree(machine.krealloc(addr, 200))
        assert [cache.validate() for cache in machine.kmem_caches.values()] == (
            [0] * len(machine.kmem_caches))
        assert machine.slab_reports == []


def test_only_what_is_named():
    with rm.Machine(nodes=1, memory="32M", slab_debug="Z,kmalloc-64,mine*") as machine:
        caches = machine.kmem_caches
        assert [name for name, cache in caches.items() if cache.flags & DEBUG_FLAGS] == [
            "kmalloc-64"]
        assert caches["kmalloc-96"].capacity > 0
        machine.kmem_cache_create("mine-1", 64)
        assert caches["mine-1"].flags == Z
        # Both ways of kmalloc(), side by side.
        held = [machine.kmalloc(size) for size in (60, 90, 30) for _ in range(300)]
        assert len(set(held)) == len(held)
        assert caches["kmalloc-64"].active_objs == 300
        for addr in held:
            machine.kfree(addr)
        machine.check()


def test_slots_of_kmalloc_are_nobody_else_s():
    with rm.Machine(nodes=1, memory="64M", slab_debug="F,kmalloc-*") as machine:
        made = [machine.kmem_cache_create(f"c{n}", 3000, flags=SLAB.NO_MERGE) for n in range(530)]
        for cache in made[-40:]:
            cache.free(cache.alloc())
        for size in (8, 64, 1024):
            addr = machine.kmalloc(size)
            assert machine.kmem_caches[f"kmalloc-{size}" if size < 1024 else "kmalloc-1k"
                                       ].active_objs == 1
            machine.kfree(addr)
        machine.check()


@pytest.mark.parametrize("letters", ["ZPU", "FZPU", "U"])
def test_o_spares_caches_whose_slabs_would_grow(letters):
    with (rm.Machine(nodes=1, memory="32M", slab_debug=letters) as with_all,
          rm.Machine(nodes=1, memory="32M", slab_debug=letters + "O") as spared):
        grown = set()
        for size in KMALLOC_SIZES[1:]:
            name = f"kmalloc-{size}" if size < 1024 else f"kmalloc-{size >> 10}k"
            cache, other = with_all.kmem_caches[name], spared.kmem_caches[name]
            if get_order(cache.size) > get_order(size):
                grown.add(size)
                assert other.size == size and not other.flags & (Z | P | U)
                assert bool(other.flags & F) == ("F" in letters)
            else:
                assert (other.size, other.flags) == (cache.size, cache.flags)
        # A red zone before each object takes as much as its alignment.
        assert grown == ({2048, 4096, 8192} if "Z" in letters else {4096, 8192})


def test_flags_that_a_cache_asks_for_stay():
    with rm.Machine(nodes=1, memory="32M", slab_debug="Z,a") as machine:
        assert machine.kmem_cache_create("a", 64, flags=P).flags == P | Z
        assert machine.kmem_cache_create("b", 64, flags=P).flags == P


def test_checked_objects_are_not_merged_with_others():
    with rm.Machine(nodes=1, memory="32M") as machine:
        plain = machine.kmem_cache_create("plain", 1500)
        checked = machine.kmem_cache_create("checked", 1500, flags=F)
        again = machine.kmem_cache_create("again", 1500, flags=F)
        assert plain.root != checked.root == again.root
        assert machine.sysfs["/sys/kernel/slab/:F-0001504/objects"] == "0\n"


def test_files_say_what_is_checked():
    with rm.Machine(nodes=1, memory="32M") as machine:
        folder = "/sys/kernel/slab/mine"
        files = {"sanity_checks": F, "red_zone": Z, "poison": P, "store_user": U}
        for flags in (NONE, F, Z, P, U, F | P, DEBUG_FLAGS):
            cache = machine.kmem_cache_create("mine", 64, flags=flags | SLAB.NO_MERGE)
            for name, flag in files.items():
                assert machine.sysfs[f"{folder}/{name}"] == f"{int(bool(flags & flag))}\n"
            if flags:
                machine.sysfs[f"{folder}/validate"] = "1"
            else:
                with pytest.raises(OSError, match="Invalid argument"):
                    machine.sysfs[f"{folder}/validate"] = "1"
            cache.destroy()
