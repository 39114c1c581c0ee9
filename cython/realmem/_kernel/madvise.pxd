# What madvise() does to pages, one piece of a VMA at a time; the VMAs were asked before.
# Compare mm/madvise.c.
from libc.stdint cimport uint64_t

from realmem._kernel.mm_types cimport mm_struct

cdef enum:
    ADVISE_DONTNEED = 0         # drop what is private; shared pages stay with their object
    ADVISE_FREE = 1             # clean private pages may be dropped later
    ADVISE_COLD = 2             # nobody used it lately
    ADVISE_GUARD_INSTALL = 3
    ADVISE_GUARD_REMOVE = 4
    ADVISE_SOFT_CLEAN = 5       # clear_refs: soft-dirty bits
    ADVISE_OLD = 6              # clear_refs: accessed bits, all; or
    ADVISE_OLD_ANON = 7         # ... of anonymous pages, or
    ADVISE_OLD_FILE = 8         # ... of objects' pages
    ADVISE_NUMA_HINT = 9        # let the next access of each page fault (change_prot_numa())

# Returns: 0, -ESRCH, or -ENOMEM (guard markers need page tables; part of them is there).
cdef int mm_advise(mm_struct* mm, uint64_t id, uint64_t start, uint64_t end,
                   int what) noexcept nogil
