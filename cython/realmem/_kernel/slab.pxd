# Slab caches: allocating and freeing objects.  Signal-safe.
# Mirrors mm/slub.c (Linux 6.18), with magazines in place of its per-CPU arrays.
#
# A compiled user cimports these; see realmem/_core/kmem_cache.pyx for how caches are made.
from libc.stdint cimport uint32_t, uint64_t

from realmem._kernel.slab_debug cimport slab_user
from realmem._kernel.slab_types cimport kmem_cache

# An object of cache s, from the calling CPU's node; NULL without memory.
# GFP_ZERO clears object_size bytes.
# Mirrors: kmem_cache_alloc().
cdef void* kmem_cache_alloc(kmem_cache* s, uint32_t gfp) noexcept nogil
# The same from node nid (-1: the calling CPU's); another node's only when that has no memory
# and gfp allows it.
cdef void* kmem_cache_alloc_node(kmem_cache* s, uint32_t gfp, int nid) noexcept nogil

# Preconditions: object came from s (or an alias of it) and was not freed since; it is not
# Python's, which is to free by cache.free() what cache.alloc() gave it: a later free of such an
# object by Python would not be seen to be its second.
cdef void kmem_cache_free(kmem_cache* s, void* object) noexcept nogil

# All n objects into objects_ret, or none: returns n or 0.
# Mirrors: kmem_cache_alloc_bulk(), kmem_cache_free_bulk().
cdef uint64_t kmem_cache_alloc_bulk(kmem_cache* s, uint32_t gfp, uint64_t n,
                                    void** objects_ret) noexcept nogil
cdef void kmem_cache_free_bulk(kmem_cache* s, uint64_t n, void** objects) noexcept nogil

# What the fast paths leave to (kmalloc.pyx has fast paths of its own).
cdef void* slab_alloc_slow(kmem_cache* s, uint32_t gfp, int nid) noexcept nogil
cdef void slab_free_slow(kmem_cache* s, void* object) noexcept nogil

# An object of a debugged cache, for who knows more of the request than kmem_cache_alloc_node().
cdef void* kmem_cache_alloc_debug(kmem_cache* s, uint32_t gfp, int nid, uint64_t orig_size,
                                  slab_user* who) noexcept nogil
