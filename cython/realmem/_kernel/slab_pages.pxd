# Slabs: made of pages, filled and emptied, given back.  Signal-safe.
# Mirrors mm/slub.c (Linux 6.18): allocate_slab(), get_partial_node(), __slab_free(),
# discard_slab().
from libc.stdint cimport int64_t, uint32_t, uint64_t

from realmem._kernel.slab_types cimport kmem_cache, kmem_cache_node, slab
from realmem.types cimport list_head, machine

# A slab with all its objects constructed and the caller's, in no list; publish_slab() ends
# that.  NULL without memory.  Context: not inside an area.
cdef slab* new_slab(kmem_cache* s, uint32_t gfp, int nid) noexcept nogil
# The same, for a caller that constructs the objects itself.
cdef slab* new_raw_slab(kmem_cache* s, uint32_t gfp, int nid) noexcept nogil

# Count a new slab; the caller keeps its first `taken` objects.
cdef void publish_slab(kmem_cache* s, slab* sl, uint32_t taken) noexcept nogil

# Take up to `wanted` objects from a node's partial slabs; returns how many.
cdef uint32_t take_objects(kmem_cache* s, kmem_cache_node* n, void** objects_ret,
                           uint32_t wanted) noexcept nogil

# Give objects back to their slabs.  Slabs that are empty and too many go to `empty`, for
# discard_slabs(); with NULL they stay where they are.
cdef void put_objects(kmem_cache* s, void** objects, uint32_t count,
                      list_head* empty) noexcept nogil

# Take every empty slab off a node's list, or those beyond min_partial, onto `empty`.
cdef void take_empty_slabs(kmem_cache* s, kmem_cache_node* n, bint all_of_them,
                           list_head* empty) noexcept nogil

# Put the fullest slabs first, as __kmem_cache_do_shrink() does.
cdef void sort_partial(kmem_cache* s, kmem_cache_node* n) noexcept nogil

# Give the pages of slabs back, of any caches; returns how many.  Context: not inside an area.
cdef int64_t discard_slabs(machine* m, list_head* empty) noexcept nogil
cdef void discard_raw_slab(machine* m, slab* sl) noexcept nogil

# The node that a slab lies on.
cdef kmem_cache_node* slab_node(const kmem_cache* s, const slab* sl) noexcept nogil
