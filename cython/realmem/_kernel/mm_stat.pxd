# What page tables have of a range, counted for /proc.
from libc.stdint cimport int64_t, uint64_t

from realmem._kernel.mm_types cimport mm_struct

# Pages, but for those in bytes.  Compare fs/proc/task_mmu.c:struct mem_size_stats.
cdef struct range_stat:
    int64_t rss
    int64_t pss                 # bytes
    int64_t pss_dirty           # bytes
    int64_t pss_locked          # bytes
    int64_t pss_anon            # bytes, as the next two
    int64_t pss_file
    int64_t pss_shmem
    int64_t shared_clean
    int64_t shared_dirty
    int64_t private_clean
    int64_t private_dirty
    int64_t referenced
    int64_t anonymous
    int64_t lazyfree
    int64_t huge                # mapped by huge entries
    int64_t dirty               # numa_maps' way of counting: by entry or page
    int64_t active
    int64_t mapmax
    int64_t swap                # entries of swapped pages
    int64_t swap_pss            # bytes
    int64_t nodes[64]

# Returns: 0, or -ESRCH.
cdef int mm_range_stat(mm_struct* mm, uint64_t id, uint64_t start, uint64_t end,
                       range_stat* stat_ret) noexcept nogil

# /proc/PID/pagemap's words of n pages from start on; without may_see frame numbers are 0.
# Mirrors: fs/proc/task_mmu.c:pte_to_pagemap_entry().
cdef int mm_pagemap(mm_struct* mm, uint64_t id, uint64_t start, int64_t n, bint may_see,
                    uint64_t* words_ret) noexcept nogil

# mincore()'s byte for each page of a range without holes.
cdef int mm_mincore(mm_struct* mm, uint64_t id, uint64_t start, uint64_t end,
                    unsigned char* bytes_ret) noexcept nogil
