# The published VMAs of one address space by address: chunks of slots in a reservation of their
# own, and a directory.  A change costs one chunk and, seldom, a piece of the directory,
# whatever their number.  Everything here is signal-safe and called with mm.lock held.
from libc.stdint cimport int64_t, uint64_t

from realmem._kernel.mm_types cimport (
    mm_struct, vm_area_struct, vma_chunk, vma_cursor, vma_dir, vma_index, vma_slot,
)
from realmem.types cimport machine

# Room for more VMAs than Linux allows a process by default; reserved only, so that it costs
# what is used.  Neighbouring chunks that are not half full together are joined, so that
# so many of them hold so many VMAs.
cdef enum:
    VMA_INDEX_CAPACITY = 262144
    NR_VMA_CHUNKS = 8192
    VMA_INDEX_BYTES = 25362432      # NR_VMA_CHUNKS of each: vma_dir 24, vma_chunk 3072 bytes

# The VMA that holds addr, or the next one above; NULL when there is none.
# Mirrors: mm/mmap.c:find_vma().
cdef vma_slot* vma_find(const vma_index* index, uint64_t addr) noexcept nogil
# The same, to go on from; the VMA before a cursor's; and the next one.
cdef vma_slot* vma_first(vma_index* index, uint64_t addr, vma_cursor* cursor) noexcept nogil
cdef vma_slot* vma_before(const vma_cursor* cursor) noexcept nogil
cdef vma_slot* vma_next(vma_cursor* cursor) noexcept nogil
# The VMA that begins at start, or NULL.
cdef vm_area_struct* vma_at(const vma_index* index, uint64_t start) noexcept nogil

# Put a VMA in at its address.  Preconditions: nothing there overlaps it; there is room.
cdef void vma_insert(vma_index* index, vm_area_struct* vma) noexcept nogil
# Take the VMA that begins at start out; it is the caller's.
cdef void vma_erase(vma_index* index, uint64_t start) noexcept nogil
# A stack grew: the VMA begins lower than its slot says.
cdef void vma_lower(vma_index* index, vma_slot* slot, uint64_t start) noexcept nogil
cdef void vma_index_clear(vma_index* index) noexcept nogil

# A list (vm_next) of n VMAs; NULL, and nothing of it, without memory.
cdef vm_area_struct* vm_area_alloc(machine* m, int64_t n) noexcept nogil
cdef void vm_area_free_list(machine* m, vm_area_struct* list) noexcept nogil
