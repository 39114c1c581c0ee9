# Swap areas: their slots, the frames that are copies of slots (the swap cache), and moving pages
# between the two.  Signal-safe.
#
# An entry of a page table that stands for a swapped page counts once in its slot's map; so does
# one in an object of shared memory, and who writes the slot.  A slot that counts nothing is free.
# While a frame is in the cache it has a reference of the cache's, and its bytes are what the slot
# is to hold: no process may store to it, but one that has the only entry of it.
# Compare mm/swapfile.c, mm/swap_state.c, mm/page_io.c (Linux 6.18).
from libc.stdint cimport uint32_t, uint64_t

from realmem._kernel.mm_types cimport PTE_PFN_MASK, PTE_TYPE_SHIFT, mmu
from realmem.types cimport PAGE_SHIFT, page

cdef inline int swp_type(uint64_t entry) noexcept nogil:
    return <int>(entry >> PTE_TYPE_SHIFT) - 1

cdef inline uint64_t swp_offset(uint64_t entry) noexcept nogil:
    return (entry & <uint64_t>PTE_PFN_MASK) >> PAGE_SHIFT

cdef inline uint64_t swp_entry(int type, uint64_t offset) noexcept nogil:
    return (<uint64_t>(type + 1) << PTE_TYPE_SHIFT) | (offset << PAGE_SHIFT)

# Give a mapped page its slot, counted once for the caller, and put it into the cache; one that
# is there already keeps the slot that it has.
# Context: the lock of an mm that maps it is held.  Mirrors: folio_alloc_swap().
# Returns: the entry, or 0: every area is full.
cdef uint64_t swap_cache_add(mmu* u, page* p) noexcept nogil

# A slot for what is no anonymous page, counted once for the caller; 0: every area is full.
cdef uint64_t swap_alloc(mmu* u) noexcept nogil

# One who refers to a slot more, and one less: with the last one the slot and its copy go.
# Mirrors: swap_duplicate(), swap_free().
cdef void swap_duplicate(mmu* u, uint64_t entry) noexcept nogil
cdef void swap_free(mmu* u, uint64_t entry) noexcept nogil

# The frame of a slot, with a reference; NULL: none.  Mirrors: swap_cache_get_folio().
cdef page* swap_cache_get(mmu* u, uint64_t entry) noexcept nogil
# Put what was read from a slot into the cache, unless another copy is there.
# Returns: the copy that is, with a reference; new's references are used up.
cdef page* swap_cache_put(mmu* u, uint64_t entry, page* new) noexcept nogil
# The slot of a page that may be in the cache, counted once for the caller, with a reference to the
# page; 0: it is not.
cdef uint64_t swap_cache_grab(mmu* u, page* p) noexcept nogil
# Have a slot that somebody refers to read into the cache, if there is a frame for it at once.
cdef void swap_cache_fill(mmu* u, uint64_t entry, int nid) noexcept nogil
# The slots around one that is read: what was swapped out together is often wanted together.
cdef void swap_read_ahead(mmu* u, uint64_t entry, int nid) noexcept nogil
# How many refer to a slot.
cdef uint32_t swap_count(mmu* u, uint64_t entry) noexcept nogil

# A page that may be in the cache was mapped as one process's own: what its slot has is not it.
cdef void swap_cache_dirty(mmu* u, page* p) noexcept nogil

# Write an unmapped page of the cache to its slot, and give it up if nobody came for it meanwhile.
# The caller's reference to both is used up.  Mirrors: mm/vmscan.c:pageout(), __remove_mapping().
# Returns: whether the frame is free; what could not be written stays in the cache.
cdef bint swap_out(mmu* u, page* p, uint64_t entry) noexcept nogil

# The bytes of a slot, there and back: 0, or -errno.
cdef int swap_write(mmu* u, uint64_t entry, const page* p) noexcept nogil
cdef int swap_read(mmu* u, uint64_t entry, page* p) noexcept nogil

# Whether the page of a slot is nobody's but the caller's, who has an entry of it: nobody maps it,
# and nobody else refers to the slot.
cdef bint swap_is_only(mmu* u, uint64_t entry, const page* p) noexcept nogil

# Whether there is a slot left.
cdef bint get_nr_swap_pages(const mmu* u) noexcept nogil
