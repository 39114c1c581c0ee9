# cython: language_level=3
"""The face of the recount of page tables, VMAs and reverse maps."""
from libc.stdint cimport int64_t, uint32_t
from libc.stdlib cimport calloc, free

from realmem._core.mmu cimport Mmu
from realmem._core.space cimport Space
from realmem._kernel.mm_finding cimport MM_OBJECTS, MM_VALID, mm_finding
from realmem._kernel.mm_types cimport mm_struct
from realmem._kernel.validate_mm cimport validate_mms

from realmem._core.own_caches import NAMES
from realmem.errors import InvariantError

# By the numbers of _kernel/mm_finding.pxd.
MESSAGES = (
    "",
    "address {where:#x}: entry {found:#x} in no VMA",
    "address {where:#x}: entry {found:#x} allows more than its VMA",
    "address {where:#x}: the host's mapping allows more than entry {found:#x}",
    "address {where:#x}: entry {found:#x} maps no anonymous page",
    "address {where:#x}: writable entry to a frame that is mapped {found} times",
    "rss says {found} pages, the page tables have {expected}",
    "pfn {where}: page table counts {found} used entries, it has {expected}",
    "{found} page tables counted, the walk finds {expected}",
    "{found} host VMA edges counted, the entries make {expected}",
    "pfn {where}: mapcount {found}, page tables map it {expected} times",
    "pfn {where}: refcount {found} below its {expected} mappings",
    "{found} page-table frames, the walks find {expected}",
    "address {where:#x}: VMA {found} begins below its predecessor's end {expected:#x}",
    "vmalloc: ranges overlap near {where:#x}, or are not all",
    "vmalloc: {found} pages counted from {where:#x} on, there are {expected}",
    "vmalloc: entry {found:#x} of {where:#x} maps a frame that is not the area's",
    "vmalloc: {found} entries, the areas have {expected}",
    "{found} frames say that they are vmalloc's, the areas have {expected}",
    "{where}: {found} objects are in use, there is use for {expected}",
    "address {where:#x}: the VMA differs from what is published of it",
    "total_vm or its kin: {found} pages counted, the VMAs have {expected}",
    "address {where:#x}: its frame is page {found} of its owner, the VMA expects {expected}",
    "address {where:#x}: huge entry {found:#x} and the table that it keeps differ",
    "frames count {found} huge entries, the walks find {expected}",
    "{found} mappings by locked VMAs (or frames of such) are counted, the walks find {expected}",
    "{found} runs of frames counted, the page tables have {expected}",
    "address {where:#x}: {found} swapped pages counted, the entries have {expected}",
)


def space_id(Space space):
    """Give the lock order of address spaces."""
    return space.id


def check_spaces(Mmu mmu not None, spaces):
    """
    Recount the page tables of every address space of this machine.

    :param mmu: the machine's.
    :param spaces: every AddressSpace that has not exited.
    :raises InvariantError: names the first thing that is wrong.
    """
    cdef list ordered = sorted(spaces, key=space_id)
    cdef int64_t i, n = len(ordered)
    cdef mm_finding found
    cdef mm_struct** mms
    cdef uint32_t* counts
    mmu.core.alive()
    mms = <mm_struct**>calloc(n + 1, sizeof(mm_struct*))
    counts = <uint32_t*>calloc(mmu.u.m.max_pfn + 1, sizeof(uint32_t))
    try:
        if mms == NULL or counts == NULL:
            raise MemoryError
        for i in range(n):
            mms[i] = (<Space>ordered[i]).mm
        with nogil:
            validate_mms(&mmu.u, mms, n, counts, &found)
    finally:
        free(mms)
        free(counts)
    if found.what != MM_VALID:
        where = NAMES[found.where] if found.what == MM_OBJECTS else found.where
        words = MESSAGES[found.what].format(
            where=where, expected=found.expected, found=found.found)
        raise InvariantError(f"pid {found.pid}: {words}" if found.pid else words)
