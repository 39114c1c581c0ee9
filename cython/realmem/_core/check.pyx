# cython: language_level=3
"""The face of the recount: what machine.check() calls."""
from libc.stdint cimport uint8_t

from realmem._core.machine cimport MachineCore
from realmem._kernel.validate cimport VALID, balance, balance_machine, finding, validate_machine

from realmem.errors import InvariantError
from realmem.layout import ZONE_NAMES

# By the numbers of _kernel/validate.pxd; filled with pfn, expected and found.
MESSAGES = (
    "",
    "pfn {pfn}: its list's neighbours disagree",
    "pfn {pfn}: state {found} where {expected} belongs",
    "pfn {pfn}: order {found} on a list of order {expected}",
    "pfn {pfn}: migratetype {found} on a list of migratetype {expected}",
    "pfn {pfn}: not aligned to its order {expected}",
    "pfn {pfn}: on a list of another zone",
    "pfn {pfn}: in two places",
    "pfn {pfn}: free beside its free buddy of order {expected}, and not merged",
    "order {pfn}: nr_free says {found} blocks, the list has {expected}",
    "order {pfn}: area_mask {found:#x} disagrees with the list",
    "nr_free_pages says {found}, the lists have {expected}",
    "a per-CPU list's count says {found}, it has {expected}",
    "pfn {pfn}: in no place",
    "pfn {pfn}: refcount {found} where {expected} belongs",
    "pfn {pfn}: compound tail and head disagree",
    "the high-atomic counter says {found}, there are {expected} pages",
    "pgalloc - pgfree is {found}, {expected} pages are allocated",
    "NUMA counters disagree: {expected} against {found}",
    "managed {expected} pages, found {found}",
    "pfn {pfn}: reserved, but not of the struct page array",
    "pfn {pfn}: free as migratetype {expected} in a pageblock of {found}",
    "pfn {pfn}: on a quicklist, but not as such or on another node",
    "a quicklist's count says {found}, there are {expected}",
    "pfn {pfn}: a page table on a quicklist is not zero",
    "pfn {pfn}: a run counts {found} frames left, it has {expected}",
)


def check_counts(MachineCore core):
    """
    Balance the counters of a machine, without looking at frames: cheap enough for each call.

    :raises InvariantError: managed pages are not the sum of free, listed and allocated ones.
    """
    cdef balance found
    core.alive()
    core.busy += 1
    with nogil:
        balance_machine(core.m, &found)
    core.busy -= 1
    if found.managed != found.free + found.listed + found.allocated:
        raise InvariantError(
            f"managed {found.managed} pages, but {found.free} free + {found.listed} in per-CPU "
            f"lists + {found.allocated} allocated")


def check(MachineCore core):
    """
    Recount every frame, list and counter of a machine.

    :raises InvariantError: names the first that is wrong.
    :raises ValueError: a closed machine.
    """
    cdef finding found
    cdef uint8_t[::1] seen
    core.alive()
    seen = bytearray(max(core.m.max_pfn, 1))
    core.alive()                # again: a finalizer may have run in between
    core.busy += 1
    with nogil:
        validate_machine(core.m, &seen[0], &found)
    core.busy -= 1
    if found.what != VALID:
        where = f"node {found.index // 4} zone {ZONE_NAMES[found.index % 4]}: "
        raise InvariantError(where + MESSAGES[found.what].format(
            pfn=found.pfn, expected=found.expected, found=found.found))
