# Ranges of vmalloc addresses: which are in use, free, or freed and waiting for a purge.
# Mirrors mm/vmalloc.c (Linux 6.18): vmap_area_root, free_vmap_area_root, purge lists.
# Differs: treaps in place of red-black trees; one node, so one lock.
# Preconditions of all: s.mm.lock held.  Signal-safe.
from libc.stdint cimport int64_t, uint64_t

from realmem._kernel.mm_types cimport vmap_area, vmap_space

# Begin with [start, start + length) free; end, giving the descriptors back.
# Returns: 0, or -ENOMEM.
cdef int vmap_areas_init(vmap_space* s, uint64_t start, uint64_t length) noexcept nogil
cdef void vmap_areas_exit(vmap_space* s) noexcept nogil

# Take the lowest free range of `size` bytes at a multiple of `align`; purges when there is none.
# Mirrors: alloc_vmap_area() => find_vmap_lowest_match(), va_clip().
# Returns: a busy range; or NULL with rc_ret -ENOMEM (no memory for descriptors) or -EBUSY.
cdef vmap_area* alloc_vmap_area_locked(vmap_space* s, uint64_t size, uint64_t align,
                                       uint64_t flags, int* rc_ret) noexcept nogil

# Give a busy range up.  It is not used again before the next purge, which comes when many pages
# wait for it; nothing may be mapped there any more.
# Mirrors: free_vmap_area_noflush().
cdef void free_vmap_area_locked(vmap_space* s, vmap_area* area) noexcept nogil

# Make what was given up free.
# Mirrors: __purge_vmap_area_lazy().
cdef void purge_vmap_areas_locked(vmap_space* s) noexcept nogil

# The busy range that holds an address; the first that begins at it or above.  Or NULL.
cdef vmap_area* find_vmap_area_locked(vmap_space* s, uint64_t addr) noexcept nogil
cdef vmap_area* next_vmap_area_locked(vmap_space* s, uint64_t addr) noexcept nogil

# How many descriptors there are.
cdef int64_t vmap_areas_count_locked(const vmap_space* s) noexcept nogil

# Recount: the ranges are sorted, apart, and together the whole; `largest` is right everywhere.
# Returns: whether all is well; else where_ret is an address near what is wrong.
cdef bint vmap_areas_valid_locked(const vmap_space* s, uint64_t* where_ret) noexcept nogil
