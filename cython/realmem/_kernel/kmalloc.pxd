# kmalloc() and kfree(): objects of any size.  Signal-safe.
# Mirrors include/linux/slab.h, mm/slab_common.c, mm/slub.c (Linux 6.18).
from libc.stdint cimport uint32_t, uint64_t

from realmem._kernel.slab_types cimport kmem_cache
from realmem.types cimport machine, page

cdef enum:
    ZERO_SIZE_PTR = 16          # what kmalloc(0) gives: no memory, and not NULL
    KMALLOC_MAX_SIZE = 0x400000

# size bytes; NULL without memory or beyond KMALLOC_MAX_SIZE.
cdef void* kmalloc(machine* m, uint64_t size, uint32_t gfp) noexcept nogil
cdef void* kmalloc_node(machine* m, uint64_t size, uint32_t gfp, int nid) noexcept nogil
# n * size bytes, NULL where that overflows; and the same cleared.
cdef void* kmalloc_array(machine* m, uint64_t n, uint64_t size, uint32_t gfp) noexcept nogil
cdef void* kcalloc(machine* m, uint64_t n, uint64_t size, uint32_t gfp) noexcept nogil

# Objects of kmalloc() and of any cache; NULL and ZERO_SIZE_PTR do nothing.
# Preconditions: it was not freed since, and is not Python's (see kmem_cache_free()).
cdef void kfree(machine* m, const void* object) noexcept nogil

# How many bytes may be used behind an object.
cdef uint64_t ksize(const machine* m, const void* object) noexcept nogil
# The same of any object of a slab cache, which keeps its red zone as it is.
cdef uint64_t slab_ksize(const kmem_cache* s) noexcept nogil

# The object with room for size bytes, moved if it must be: NULL, and object as it was, without
# memory.  Bytes beyond the old size are zero if gfp has GFP_ZERO and had it before.
cdef void* krealloc(machine* m, const void* object, uint64_t size, uint32_t gfp) noexcept nogil

# The cache that serves a size, NULL for none (0, or more than KMALLOC_MAX_CACHE_SIZE).
cdef kmem_cache* kmalloc_slab(const machine* m, uint64_t size, uint32_t gfp) noexcept nogil

# Whether a page heads an allocation of kmalloc() that no cache served.
cdef bint is_large_kmalloc(const page* p) noexcept nogil

# The index of that cache; 0 for size 0.  Preconditions: size <= KMALLOC_MAX_CACHE_SIZE.
cdef int kmalloc_index(uint64_t size) noexcept nogil
