# Changes of an address space as Python plans them: a log of steps that is run in one nogil
# section under mm.lock, to its end or not at all.
from libc.stdint cimport int32_t, int64_t, uint64_t

from realmem._kernel.mm_types cimport address_space, mm_struct

cdef enum:
    STEP_VMAS = 0               # VMAs that begin in [start, end) become `count` others
    STEP_ZAP = 1                # flush [start, end), clear its entries, free frames and tables
    STEP_PROTECT = 2            # entries of [start, end) follow their VMAs' rights
    STEP_MOVE = 3               # what [start, end) maps goes to `to`
    STEP_LOCK = 4               # frames of [start, end) are locked in memory, or
    STEP_UNLOCK = 5             # ... no longer
    STEP_ANON = 6               # the VMA that begins at `start` gets its anon_vma

cdef struct mm_step:
    int32_t what                # STEP_*
    int64_t first               # STEP_VMAS: new_vma[first, first + count)
    int64_t count
    uint64_t start
    uint64_t end
    uint64_t to

cdef struct new_vma:
    uint64_t start
    uint64_t end
    uint64_t flags
    uint64_t pgoff
    uint64_t source             # start of the VMA whose anon_vma it takes or shares
    int32_t has_source
    int32_t policy
    address_space* object
    uint64_t file               # the opened file's number; 0: none

# Run a log that was planned when mm.generation was `generation`.
# charge: pages that overcommit has to allow; what the VMAs come to is booked at the end.
# Mirrors: mm/vma.c:vma_complete(), vms_complete_munmap_vmas(); mm/mprotect.c:
# change_protection(); mm/mremap.c:move_page_tables().
# Returns: 0; or with nothing changed -ESRCH (no longer `id`), -EAGAIN (stale), -ENOMEM (no
# memory, too many VMAs, or overcommit refuses).
cdef int mm_commit(mm_struct* mm, uint64_t id, uint64_t generation, const mm_step* steps,
                   int64_t n, const new_vma* vmas, int64_t charge) noexcept nogil
