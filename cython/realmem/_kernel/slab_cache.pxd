# The life of caches: made, shrunk, destroyed; their objects called in from threads.
# Mirrors mm/slab_common.c and mm/slub.c (Linux 6.18).
from libc.stdint cimport int64_t, uint64_t

from realmem._kernel.slab_types cimport kmem_cache
from realmem.types cimport machine

# A machine's slab allocator, without caches yet: 0 or -ENOMEM.  Not signal-safe.
cdef int slab_init(machine* m) noexcept nogil
cdef void slab_exit(machine* m) noexcept nogil

# Room for a cache of m, all zero but for machine, nodes and bytes: the caller fills in the
# geometry, then adds it.  NULL when the host has no memory.  Not signal-safe.
cdef kmem_cache* new_cache(machine* m) noexcept nogil
cdef void free_cache(kmem_cache* s) noexcept nogil

# Give a filled-in cache its magazine (slot, or -1 for any that is free; NO_MAGAZINE for
# none), and let the machine know it.
cdef void add_cache(kmem_cache* s, int slot) noexcept nogil

# Call in all free objects and give back every empty slab; returns pages.
# Mirrors: kmem_cache_shrink().  Context: not inside an area; stops every user of m for a while.
cdef int64_t shrink_cache(kmem_cache* s) noexcept nogil
cdef int64_t shrink_all_caches(machine* m) noexcept nogil

# Whether the fast paths may be used: not while objects are made to fail.
# Context: not inside an area; stops every user of m for a while.
cdef void update_fast_objects(machine* m) noexcept nogil

# Forget a cache: -EBUSY, and nothing but a shrink, while objects are out; then free_cache().
# Preconditions: nobody uses it any more.
cdef int remove_cache(kmem_cache* s) noexcept nogil

# Objects in use, objects and slabs, over all nodes.
cdef struct cache_stat:
    int64_t active_objs
    int64_t num_objs
    int64_t num_slabs
    int64_t nr_partial
    int64_t partial_objs        # in use in slabs that have free ones
cdef void stat_cache(kmem_cache* s, cache_stat* ret) noexcept nogil
cdef void stat_cache_node(kmem_cache* s, int nid, cache_stat* ret) noexcept nogil

# Where an address stands in the slab allocator; slow, for judging frees that look wrong.
cdef enum:
    OBJECT_NONE = 0             # in no slab
    OBJECT_INSIDE = 1           # in a slab, and no object starts there
    OBJECT_FREE = 2
    OBJECT_USED = 3
# Preconditions: addr is in a frame of m.  Context: not inside an area.
cdef int find_object(machine* m, uint64_t addr) noexcept nogil
