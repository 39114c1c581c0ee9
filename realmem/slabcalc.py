"""
The geometry of slab caches: what SLUB makes of a size, an alignment and flags.

Pure arithmetic, from Linux 6.18's ``mm/slub.c:calculate_sizes()``, ``calculate_order()`` and
``mm/slab_common.c:calculate_alignment()``, ``find_mergeable()``.  All sizes are bytes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from realmem.layout import MAX_PAGE_ORDER, PAGE_SHIFT, PAGE_SIZE, SLAB, get_order

KMALLOC_MAX_CACHE_SIZE = 2 * PAGE_SIZE
KMALLOC_MAX_SIZE = PAGE_SIZE << MAX_PAGE_ORDER

_WORD = 8
_CACHE_LINE = 64                # include/asm/cache.h:L1_CACHE_BYTES
_TRACK = 32                     # sizeof(struct track): address, stack, CPU, pid, time
_ORIG_SIZE = 4
_MAX_OBJS_PER_PAGE = 32767      # struct slab counts objects in 15 bits
_MAX_ORDER = 3                  # slub_max_order
_MIN_PARTIAL, _MAX_PARTIAL = 5, 10

# Flags that forbid merging, and those that merged caches must share.
NEVER_MERGE = (
    SLAB.RED_ZONE | SLAB.POISON | SLAB.STORE_USER | SLAB.TYPESAFE_BY_RCU | SLAB.NO_MERGE
)
MERGE_SAME = SLAB.RECLAIM_ACCOUNT | SLAB.CACHE_DMA | SLAB.CACHE_DMA32 | SLAB.ACCOUNT
NO_FLAGS = SLAB(0)
DEBUG_FLAGS = SLAB.CONSISTENCY_CHECKS | SLAB.RED_ZONE | SLAB.POISON | SLAB.STORE_USER


@dataclass(frozen=True)
class Geometry:
    """
    How a cache lays out its objects.

    :ivar object_size: of one object, as asked for.
    :ivar size: stride, metadata included.
    :ivar align: of each object.
    :ivar inuse: where metadata begins, from the start of an object.
    :ivar offset: of the free pointer, from the start of a free object.
    :ivar red_left_pad: red zone before each object.
    :ivar order: of a slab.
    :ivar objs_per_slab: objects in a slab of that order.
    :ivar min_order: of a slab when memory is too fragmented for the order.
    :ivar min_partial: empty slabs are kept while a node has fewer partial ones.
    :ivar cpu_partial: objects that Linux keeps on a CPU's partial slabs.
    """

    object_size: int
    size: int
    align: int
    inuse: int
    offset: int
    red_left_pad: int
    order: int
    objs_per_slab: int
    min_order: int
    min_partial: int
    cpu_partial: int


def geometry(
    object_size: int,
    align: int = 0,
    flags: SLAB = NO_FLAGS,
    *,
    nr_cpus: int,
    ctor: bool = False,
    freeptr_offset: int | None = None,
) -> Geometry:
    """
    Compute a cache's layout.

    Compare mm/slub.c:calculate_sizes().

    :param object_size: of one object, at least 1.
    :param align: power of two, or 0.
    :param flags: SLAB flags.
    :param nr_cpus: present CPUs: more of them want more objects in a slab.
    :param ctor: whether the cache has a constructor, whose work a free pointer must not undo.
    :param freeptr_offset: where in the object the free pointer may go all the same.
    :raises ValueError: no slab can hold such an object.
    """
    align = calculate_alignment(object_size, align, flags)
    size = _round_up(object_size, _WORD)
    if flags & SLAB.RED_ZONE and size == object_size:
        size += _WORD
    inuse = size
    keeps_state = bool(flags & SLAB.TYPESAFE_BY_RCU) or ctor
    outside = flags & SLAB.POISON or (
        flags & SLAB.RED_ZONE
        and (object_size < _WORD or (flags & SLAB.KMALLOC and flags & SLAB.STORE_USER))
    )
    if outside or (keeps_state and freeptr_offset is None):
        offset = size
        size += _WORD
    elif keeps_state and freeptr_offset is not None:
        offset = freeptr_offset
    else:
        # In the middle: an overrun from a neighbour should not reach it.
        offset = object_size // 2 // _WORD * _WORD
    if flags & SLAB.STORE_USER:
        size += 2 * _TRACK
        if flags & SLAB.KMALLOC:
            size += _ORIG_SIZE
    red_left_pad = 0
    if flags & SLAB.RED_ZONE:
        red_left_pad = _round_up(_WORD, align)
        size += _WORD + red_left_pad
    size = _round_up(size, align)
    order = calculate_order(size, nr_cpus)
    return Geometry(
        object_size=object_size,
        size=size,
        align=align,
        inuse=inuse,
        offset=offset,
        red_left_pad=red_left_pad,
        order=order,
        objs_per_slab=_objects(order, size),
        min_order=get_order(size),
        min_partial=min(_MAX_PARTIAL, max(_MIN_PARTIAL, (size.bit_length() - 1) // 2)),
        cpu_partial=_cpu_partial(size, flags),
    )


def calculate_alignment(object_size: int, align: int, flags: SLAB) -> int:
    """
    Give the alignment of objects.

    Compare mm/slab_common.c:calculate_alignment(): a cache line when asked for, or as much of
    one as small objects share.
    """
    if flags & SLAB.HWCACHE_ALIGN:
        line = _CACHE_LINE
        while object_size <= line // 2:
            line //= 2
        align = max(align, line)
    return _round_up(max(align, _WORD), _WORD)


def calculate_order(size: int, nr_cpus: int) -> int:
    """
    Choose the order of slabs for a stride.

    Compare mm/slub.c:calculate_order(): the first order that holds enough objects for the
    number of CPUs and wastes at most a sixteenth; then an eighth, a quarter, a half.

    :raises ValueError: no block of pages holds one object.
    """
    wanted = 4 * (nr_cpus.bit_length() + 1)
    wanted = min(wanted, max(_objects(_MAX_ORDER, size), 1))
    least = get_order(wanted * size)
    if _objects(least, size) > _MAX_OBJS_PER_PAGE:
        return get_order(size * _MAX_OBJS_PER_PAGE) - 1
    fraction = 16
    while fraction > 1:
        for order in range(least, _MAX_ORDER + 1):
            slab = PAGE_SIZE << order
            if slab % size <= slab // fraction:
                return order
        fraction //= 2
    order = get_order(size)
    if order > MAX_PAGE_ORDER:
        raise ValueError(f"no slab can hold objects of {size} bytes")
    return order


def _objects(order: int, size: int) -> int:
    return (PAGE_SIZE << order) // size


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _cpu_partial(size: int, flags: SLAB) -> int:
    if flags & DEBUG_FLAGS:
        return 0
    for least, objects in ((PAGE_SIZE, 6), (1024, 24), (256, 52)):
        if size >= least:
            return objects
    return 120


# ---- merging ----


class Mergeable(Protocol):
    """What find_mergeable() asks of a cache."""

    @property
    def size(self) -> int:
        """Stride."""
        ...

    @property
    def flags(self) -> SLAB:
        """Flags."""
        ...

    @property
    def mergeable(self) -> bool:
        """Whether it may serve others: no constructor, and nothing that it alone may hold."""
        ...


AnyCache = TypeVar("AnyCache", bound=Mergeable)


def find_mergeable(
    caches: Iterable[AnyCache], object_size: int, align: int, flags: SLAB
) -> AnyCache | None:
    """
    Find a cache that can serve such objects as well.

    Compare mm/slab_common.c:find_mergeable().  Unlike there, objects that are to be checked do
    not come to stand among others that are not.

    :param caches: newest first.
    :param object_size: of the new cache.
    :param align: as asked for.
    :param flags: of the new cache, debugging included.
    """
    if flags & NEVER_MERGE:
        return None
    size = _round_up(object_size, _WORD)
    align = calculate_alignment(size, align, flags)
    size = _round_up(size, align)
    for cache in caches:
        if (
            cache.mergeable
            and not cache.flags & NEVER_MERGE
            and size <= cache.size
            and not (flags ^ cache.flags) & (MERGE_SAME | SLAB.CONSISTENCY_CHECKS)
            and cache.size % align == 0
            and cache.size - size < _WORD
        ):
            return cache
    return None


# ---- kmalloc ----

# Sizes by index, as include/linux/slab.h:kmalloc_index() numbers them.
KMALLOC_SIZES = (0, 96, 192, *(1 << shift for shift in range(3, PAGE_SHIFT + 2)))
KMALLOC_TYPES = ("", "dma-", "rcl-", "cg-")


def kmalloc_index(size: int) -> int:
    """Give the index into KMALLOC_SIZES that serves a size; 0 for 0."""
    if size == 0:
        return 0
    if 64 < size <= 96:
        return 1
    if 128 < size <= 192:
        return 2
    if size > KMALLOC_MAX_CACHE_SIZE:
        raise ValueError(f"no kmalloc cache holds {size} bytes")
    return max(3, (size - 1).bit_length())


def kmalloc_size_roundup(size: int) -> int:
    """Give how many bytes a kmalloc() of this size comes with (mm/slab_common.c)."""
    if size == 0:
        return 0
    if size <= KMALLOC_MAX_CACHE_SIZE:
        return KMALLOC_SIZES[kmalloc_index(size)]
    return PAGE_SIZE << get_order(size)


def kmalloc_name(kind: str, size: int) -> str:
    """Name a generic cache: ``kmalloc-64``, ``dma-kmalloc-1k``, ``kmalloc-rcl-8k``."""
    short = f"{size >> 10}k" if size >= 1024 else str(size)
    return f"dma-kmalloc-{short}" if kind == "dma-" else f"kmalloc-{kind}{short}"


def kmalloc_align(size: int) -> int:
    """Give the alignment of a generic cache: the largest power of two that divides it."""
    return size & -size
