# MADV_COLLAPSE: small pages become a huge one.  Compare mm/khugepaged.c.
from libc.stdint cimport uint64_t

from realmem._kernel.mm_types cimport mm_struct

# Make each whole 2 MiB of a piece of a private anonymous VMA a huge page; mm.lock is given up
# between two of them.
# Mirrors: madvise_collapse() => hpage_collapse_scan_pmd() => collapse_huge_page().
# Returns: 0; what kept the last one that failed from it: -EINVAL (nothing is there, a guard
# region lies in it), -EAGAIN (somebody else refers to a page), -ENOMEM; -ESRCH.
cdef int mm_collapse(mm_struct* mm, uint64_t id, uint64_t start, uint64_t end) noexcept nogil
