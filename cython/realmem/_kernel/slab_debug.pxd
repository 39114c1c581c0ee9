# Objects of debugged caches, one at a time and each checked.  Signal-safe.
# Mirrors mm/slub.c (Linux 6.18): alloc_single_from_partial(), alloc_debug_processing(),
# free_to_partial_list(), free_debug_processing(), validate_slab_cache().
#
# Differs: these caches have no magazines, and keep their full slabs on a list whatever their
# flags; calls from Python are checked whatever the flags.
from libc.stdint cimport int64_t, uint32_t, uint64_t

from realmem._kernel.slab_types cimport kmem_cache
from realmem.types cimport machine

# Who asks.
cdef struct slab_user:
    uint64_t addr               # of the call; FROM_PYTHON
    uint32_t handle             # of the Python stack; 0 for none
    uint32_t refused            # out: objects that could not be given, or taken back

# An object of a debugged cache, of which orig_size bytes were asked for; NULL without memory.
# Context: not inside an area.
cdef void* debug_alloc(kmem_cache* s, uint32_t gfp, int nid, uint64_t orig_size,
                       slab_user* who) noexcept nogil

# Free an object that somebody says is of s, or of any cache (NULL): debugged all the same.
# Returns the cache that it is of in truth where that is not debugged, for the caller to free it
# to; else NULL.  What is wrong is logged for s, or for the object's own cache.
cdef kmem_cache* debug_free(machine* m, kmem_cache* s, void* object, slab_user* who) noexcept nogil

# The same, without freeing it, for a caller that has found it to be wrong: s or the cache of the
# object is debugged.
cdef void debug_refuse(machine* m, kmem_cache* s, void* object) noexcept nogil

# Check every object of a cache; returns the errors that were found, repairs included.
# Mirrors: validate_slab_cache().
cdef int64_t validate_cache(kmem_cache* s) noexcept nogil

# Log every object that is in use, for a cache that was to be destroyed.
# Mirrors: list_slab_objects().
cdef void list_remaining(kmem_cache* s) noexcept nogil

# The cache of an address if that lies in a slab of m, else NULL.
cdef kmem_cache* cache_of(machine* m, const void* object) noexcept nogil
