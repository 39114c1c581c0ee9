"""Constants with Linux's values: page arithmetic, GFP flags, PROT_*, MAP_*, MADV_* and so on."""

from __future__ import annotations

import re
from enum import IntFlag

PAGE_SHIFT = 12
PAGE_SIZE = 1 << PAGE_SHIFT
TASK_SIZE = (1 << 47) - PAGE_SIZE    # user addresses end there (arch/x86/include/asm/page_64.h)
MAX_PAGE_ORDER = 10
PAGEBLOCK_ORDER = 9
STRUCT_PAGE_SIZE = 64
MAX_NR_ZONES = 4

ZONE_NAMES = ("DMA", "DMA32", "Normal", "Movable")
MIGRATE_NAMES = ("Unmovable", "Movable", "Reclaimable", "HighAtomic", "Isolate")


class GFP(IntFlag):
    """What a caller allows of an allocation (include/linux/gfp_types.h)."""

    # Where
    DMA = 0x01
    HIGHMEM = 0x02
    DMA32 = 0x04
    MOVABLE = 0x08
    RECLAIMABLE = 0x10
    # How deep into the reserves
    HIGH = 0x20
    MEMALLOC = 0x20000
    NOMEMALLOC = 0x80000
    # What reclaim may do
    IO = 0x40
    FS = 0x80
    DIRECT_RECLAIM = 0x400
    KSWAPD_RECLAIM = 0x800
    RECLAIM = 0xC00
    RETRY_MAYFAIL = 0x4000
    NOFAIL = 0x8000
    NORETRY = 0x10000
    # What comes back
    ZERO = 0x100
    WRITE = 0x1000
    NOWARN = 0x2000
    COMP = 0x40000
    HARDWALL = 0x100000
    THISNODE = 0x200000
    ACCOUNT = 0x400000
    # The usual combinations
    ATOMIC = HIGH | KSWAPD_RECLAIM
    KERNEL = RECLAIM | IO | FS
    KERNEL_ACCOUNT = KERNEL | ACCOUNT
    NOWAIT = KSWAPD_RECLAIM | NOWARN
    NOIO = RECLAIM
    NOFS = RECLAIM | IO
    USER = RECLAIM | IO | FS | HARDWALL
    HIGHUSER = USER | HIGHMEM
    HIGHUSER_MOVABLE = HIGHUSER | MOVABLE
    TRANSHUGE_LIGHT = (HIGHUSER_MOVABLE | COMP | NOMEMALLOC | NOWARN) & ~RECLAIM
    TRANSHUGE = TRANSHUGE_LIGHT | DIRECT_RECLAIM


class SLAB(IntFlag):
    """Flags of a slab cache (include/linux/slab.h)."""

    CONSISTENCY_CHECKS = 1 << 0
    RED_ZONE = 1 << 1
    POISON = 1 << 2
    KMALLOC = 1 << 3
    HWCACHE_ALIGN = 1 << 4
    CACHE_DMA = 1 << 5
    CACHE_DMA32 = 1 << 6
    STORE_USER = 1 << 7
    PANIC = 1 << 8
    TYPESAFE_BY_RCU = 1 << 9
    ACCOUNT = 1 << 10
    RECLAIM_ACCOUNT = 1 << 11
    NO_MERGE = 1 << 12


GFP_ATOMIC = GFP.ATOMIC
GFP_KERNEL = GFP.KERNEL
GFP_KERNEL_ACCOUNT = GFP.KERNEL_ACCOUNT
GFP_NOWAIT = GFP.NOWAIT
GFP_NOIO = GFP.NOIO
GFP_NOFS = GFP.NOFS
GFP_USER = GFP.USER
GFP_DMA = GFP.DMA
GFP_DMA32 = GFP.DMA32
GFP_HIGHUSER = GFP.HIGHUSER
GFP_HIGHUSER_MOVABLE = GFP.HIGHUSER_MOVABLE
GFP_TRANSHUGE_LIGHT = GFP.TRANSHUGE_LIGHT
GFP_TRANSHUGE = GFP.TRANSHUGE

# The combinations that reports name, those with the most flags first.
_COMBINATIONS = (
    "TRANSHUGE", "TRANSHUGE_LIGHT", "HIGHUSER_MOVABLE", "HIGHUSER", "USER", "KERNEL_ACCOUNT",
    "KERNEL", "NOFS", "ATOMIC", "NOIO", "NOWAIT", "DMA", "DMA32",
)  # fmt: skip


def describe_gfp(gfp: int) -> str:
    """Name a set of GFP flags the way the kernel's reports do (%pGg)."""
    names = []
    left = int(gfp)
    for name in _COMBINATIONS:
        flags = int(GFP[name])
        if left & flags == flags:
            names.append(f"GFP_{name}")
            left &= ~flags
    names += [f"__GFP_{flag.name}" for flag in GFP if flag & left and flag & (flag - 1) == 0]
    return "|".join(names) or "0"


PROT_NONE = 0
PROT_READ = 0x1
PROT_WRITE = 0x2
PROT_EXEC = 0x4
PROT_SEM = 0x8
PROT_GROWSDOWN = 0x01000000
PROT_GROWSUP = 0x02000000

MAP_SHARED = 0x01
MAP_PRIVATE = 0x02
MAP_SHARED_VALIDATE = 0x03
MAP_DROPPABLE = 0x08
MAP_TYPE = 0x0F
MAP_FIXED = 0x10
MAP_ANONYMOUS = MAP_ANON = 0x20
MAP_32BIT = 0x40
MAP_ABOVE4G = 0x80
MAP_GROWSDOWN = 0x100
MAP_DENYWRITE = 0x800
MAP_EXECUTABLE = 0x1000
MAP_LOCKED = 0x2000
MAP_NORESERVE = 0x4000
MAP_POPULATE = 0x8000
MAP_NONBLOCK = 0x10000
MAP_STACK = 0x20000
MAP_HUGETLB = 0x40000
MAP_SYNC = 0x80000
MAP_FIXED_NOREPLACE = 0x100000
MAP_UNINITIALIZED = 0x4000000
MAP_HUGE_SHIFT = 26
MAP_HUGE_MASK = 0x3F
MAP_HUGE_2MB = 21 << MAP_HUGE_SHIFT
MAP_HUGE_1GB = 30 << MAP_HUGE_SHIFT

MREMAP_MAYMOVE = 1
MREMAP_FIXED = 2
MREMAP_DONTUNMAP = 4

MADV_NORMAL = 0
MADV_RANDOM = 1
MADV_SEQUENTIAL = 2
MADV_WILLNEED = 3
MADV_DONTNEED = 4
MADV_FREE = 8
MADV_REMOVE = 9
MADV_DONTFORK = 10
MADV_DOFORK = 11
MADV_MERGEABLE = 12
MADV_UNMERGEABLE = 13
MADV_HUGEPAGE = 14
MADV_NOHUGEPAGE = 15
MADV_DONTDUMP = 16
MADV_DODUMP = 17
MADV_WIPEONFORK = 18
MADV_KEEPONFORK = 19
MADV_COLD = 20
MADV_PAGEOUT = 21
MADV_POPULATE_READ = 22
MADV_POPULATE_WRITE = 23
MADV_DONTNEED_LOCKED = 24
MADV_COLLAPSE = 25
MADV_HWPOISON = 100
MADV_SOFT_OFFLINE = 101
MADV_GUARD_INSTALL = 102
MADV_GUARD_REMOVE = 103

MLOCK_ONFAULT = 1
MCL_CURRENT = 1
MCL_FUTURE = 2
MCL_ONFAULT = 4

MS_ASYNC = 1
MS_INVALIDATE = 2
MS_SYNC = 4

PR_SET_THP_DISABLE = 41
PR_GET_THP_DISABLE = 42
PR_SET_MEMORY_MERGE = 67
PR_GET_MEMORY_MERGE = 68
PR_THP_DISABLE_EXCEPT_ADVISED = 2
PR_SET_VMA = 0x53564D41
PR_SET_VMA_ANON_NAME = 0

RLIM_INFINITY = 2**64 - 1

SEGV_MAPERR = 1
SEGV_ACCERR = 2

_UNITS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}
_SIZE = re.compile(r"\s*(\d+)\s*([KMGT]?)(?:i?B)?\s*", re.IGNORECASE)


def parse_size(size: int | str, what: str = "size") -> int:
    """
    Read a number of bytes: an int, or a string such as ``"64K"`` or ``"1GiB"`` (binary).

    :param size: bytes, or a string with an optional unit K, M, G or T, any case.
    :param what: what the size is of, for the message.
    :return: bytes.
    :raises ValueError: a negative number or a malformed string.
    :raises TypeError: neither an int nor a string.
    """
    if isinstance(size, bool) or not isinstance(size, (int, str)):
        raise TypeError(f"{what} must be an int or a string such as '256M', not {size!r}")
    if isinstance(size, int):
        if size < 0:
            raise ValueError(f"{what} is negative: {size}")
        return int(size)
    match = _SIZE.fullmatch(size)
    if match is None:
        raise ValueError(f"{what} is not a size: {size!r} (examples: '64K', '256M', '1GiB')")
    return int(match[1]) << _UNITS[match[2].upper()]


def format_size(size: int) -> str:
    """Write a number of bytes the short binary way: ``268435456`` is ``'256M'``."""
    for unit, shift in (("T", 40), ("G", 30), ("M", 20), ("K", 10)):
        if size and size % (1 << shift) == 0:
            return f"{size >> shift}{unit}"
    if size >= 1 << 20:
        return f"{size / (1 << 20):.1f}M"
    return f"{size}B" if size < 1024 else f"{size / 1024:.1f}K"


def get_order(size: int) -> int:
    """
    Give the smallest order whose block holds ``size`` bytes (asm-generic/getorder.h).

    :raises ValueError: size is not positive.
    """
    if size <= 0:
        raise ValueError(f"size must be positive: {size}")
    return ((size - 1) >> PAGE_SHIFT).bit_length()


_PUBLIC = re.compile(r"(GFP|PROT|MAP|MREMAP|MADV|MLOCK|MCL|MS|PR|RLIM|SEGV)_")

__all__ = [
    "GFP",
    "PAGE_SHIFT",
    "PAGE_SIZE",
    "SLAB",
    "TASK_SIZE",
    "get_order",
    *[name for name in list(globals()) if _PUBLIC.match(name)],
]
