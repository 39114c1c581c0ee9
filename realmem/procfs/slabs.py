"""
``/sys/kernel/slab``: a folder for each slab cache.

Compare mm/slub.c:sysfs_slab_add(), create_unique_id(), show_slab_objects().  Where Linux has a
symbolic link, for the names of caches that were merged or could be, the files stand twice.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from realmem.layout import SLAB
from realmem.procfs.slabinfo import distinct_caches
from realmem.procfs.tree import TextFile
from realmem.slabcalc import DEBUG_FLAGS, NEVER_MERGE

if TYPE_CHECKING:
    from realmem._core.kmem_cache import KmemCache

FOLDER = "/sys/kernel/slab"

_LETTERS = {
    SLAB.CACHE_DMA: "d",
    SLAB.CACHE_DMA32: "D",
    SLAB.RECLAIM_ACCOUNT: "a",
    SLAB.CONSISTENCY_CHECKS: "F",
    SLAB.ACCOUNT: "A",
}

_FLAG_FILES = {
    "cache_dma": SLAB.CACHE_DMA,
    "destroy_by_rcu": SLAB.TYPESAFE_BY_RCU,
    "hwcache_align": SLAB.HWCACHE_ALIGN,
    "poison": SLAB.POISON,
    "reclaim_account": SLAB.RECLAIM_ACCOUNT,
    "red_zone": SLAB.RED_ZONE,
    "sanity_checks": SLAB.CONSISTENCY_CHECKS,
    "store_user": SLAB.STORE_USER,
}

# File: which of a node's counts it adds up.
_COUNT_FILES = {
    "objects": "active_objs",
    "objects_partial": "partial_objs",
    "partial": "nr_partial",
    "slabs": "num_slabs",
    "total_objects": "num_objs",
}


def unique_id(size: int, flags: SLAB) -> str:
    """Name a cache that may be merged by what another would have to share with it."""
    letters = "".join(letter for flag, letter in _LETTERS.items() if flags & flag)
    return f":{letters}{'-' if letters else ''}{size:07}"


def slab_files(machine: Any) -> Iterator[tuple[str, TextFile]]:
    """Yield every file, by its path."""
    names: dict[int, list[str]] = {}
    for name, cache in list(machine.kmem_caches.items()):
        names.setdefault(cache.root, []).append(name)
    for cache in distinct_caches(machine):
        known_as = names[cache.root]
        if cache.mergeable and not cache.flags & NEVER_MERGE:
            known_as = [unique_id(cache.size, cache.flags), *known_as]
        files = dict(_files(machine, cache, len(names[cache.root]) - 1))
        for name in known_as:
            for file, text in files.items():
                yield f"{FOLDER}/{name}/{file}", text


def _files(machine: Any, cache: KmemCache, aliases: int) -> Iterator[tuple[str, TextFile]]:
    figures: dict[str, Callable[[], int]] = {
        "aliases": lambda: aliases,
        "align": lambda: cache.align,
        "cpu_partial": lambda: 0,  # a thread keeps objects, not slabs
        "object_size": lambda: cache.object_size,
        "objs_per_slab": lambda: cache.objs_per_slab,
        "order": lambda: cache.order,
        "sheaf_capacity": lambda: cache.capacity,
        "slab_size": lambda: cache.size,
        "trace": lambda: 0,
        "usersize": lambda: cache.object_size if cache.flags & SLAB.KMALLOC else 0,
    }
    for file, read in figures.items():
        yield file, TextFile(partial(_number, read))
    for file, flag in _FLAG_FILES.items():
        yield file, TextFile(partial(_number, partial(_has, cache, flag)))
    for file, count in _COUNT_FILES.items():
        yield file, TextFile(partial(_by_node, machine, cache, count))
    yield "cpu_slabs", TextFile(lambda: "0\n")
    yield "slabs_cpu_partial", TextFile(lambda: "0(0)\n")
    yield "ctor", TextFile(partial(_constructor, cache))
    yield (
        "min_partial",
        TextFile(partial(_number, lambda: cache.min_partial), partial(_set_min_partial, cache)),
    )
    yield "shrink", TextFile(lambda: "", partial(_when_one, cache.shrink))
    yield "validate", TextFile(lambda: "", partial(_when_one, partial(_validate, cache)))


def _number(read: Callable[[], int]) -> str:
    return f"{read()}\n"


def _has(cache: KmemCache, flag: SLAB) -> int:
    return int(bool(cache.flags & flag))


def _by_node(machine: Any, cache: KmemCache, count: str) -> str:
    by_node = [cache.stat(node.id)[count] for node in machine.nodes]
    parts = [f"N{nid}={value}" for nid, value in enumerate(by_node) if value]
    return " ".join([str(sum(by_node)), *parts]) + "\n"


def _constructor(cache: KmemCache) -> str:
    ctor = cache.constructor
    if ctor is None:
        return ""
    if isinstance(ctor, int):
        return f"{ctor:#x}\n"
    return f"{getattr(ctor, '__qualname__', repr(ctor))}\n"


def _refuse() -> OSError:
    return OSError(errno.EINVAL, os.strerror(errno.EINVAL))


def _set_min_partial(cache: KmemCache, text: str) -> None:
    try:
        cache.min_partial = int(text, 0)
    except ValueError:
        raise _refuse() from None


def _validate(cache: KmemCache) -> None:
    if not cache.flags & DEBUG_FLAGS:
        raise _refuse()
    cache.validate()


def _when_one(act: Callable[[], object], text: str) -> None:
    if not text.startswith("1"):
        raise _refuse()
    act()
