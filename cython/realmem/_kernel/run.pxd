# Runs: frames in a row that are kept for one page table's 2 MiB, so that one host mapping can hold
# them all (run_host.pxd).  Compare FreeBSD's sys/vm/vm_reserv.c.  Signal-safe.
#
# Frames that were not given out stay free pages in every count.  An allocation that finds no
# other block takes runs back, oldest first (buddy.pyx); that needs no host call, since nobody
# can reach such a frame: the host maps it without access, if at all.
from libc.stdint cimport int64_t, uint64_t

from realmem.types cimport list_head, machine, page, page_run, pfn_to_page, zone

cdef enum:
    RUN_PAGES = 512
    RUN_WORDS = 8               # of 64 bits

# 512 frames of node nid for private memory, none given out yet, if there is plenty.
# Returns: NULL where there is no such block, or where it would not be worth it.
cdef page_run* run_reserve(machine* m, int nid) noexcept nogil

# 2**order frames from i, a multiple of that, on for their pages, still as free as in a free list;
# NULL if some were given out, or all taken back.
# Preconditions: the lock of the address space whose table has the run.
cdef page* run_take(page_run* run, unsigned int i, unsigned int order) noexcept nogil

# Its table goes: what is left goes back to the free lists, the record too.
# Preconditions: as above; the host maps nothing of it.
cdef void run_end(page_run* run) noexcept nogil

# Add the free blocks that z's runs have left to counts by order and migratetype.
# Preconditions: z.lock held.
cdef void add_run_blocks(const zone* z, int64_t (*counts_ref)[5]) noexcept nogil

# Whether a frame is one that a run has left.  An estimate without zone.lock.
cdef bint is_in_run(const machine* m, uint64_t pfn) noexcept nogil

# The run of the table that holds an entry, or NULL; guarded by mm.lock.
cdef inline page_run* run_of(const machine* m, const uint64_t* pte) noexcept nogil:
    return <page_run*>pfn_to_page(m, (<uint64_t>pte - m.direct_map) >> 12).lru.next

cdef inline void set_run_of(const machine* m, const uint64_t* pte, page_run* run) noexcept nogil:
    pfn_to_page(m, (<uint64_t>pte - m.direct_map) >> 12).lru.next = <list_head*>run

cdef inline bint run_bit(const uint64_t* bits, unsigned int i) noexcept nogil:
    return bits[i >> 6] >> (i & 63) & 1
