# Objects of debugged caches, for the faces.
from libc.stdint cimport uint32_t, uint64_t

from realmem._core.slabs cimport SlabAllocator
from realmem._kernel.slab_types cimport kmem_cache

# Note who calls, where a cache wants to know.  Python code may run: to be done before anything
# that must hold.
cdef uint32_t caller(SlabAllocator allocator, const kmem_cache* s) except? 0xFFFFFFFF

# An object of a debugged cache, NULL without memory.  AllocatorError, and none is taken, when
# the checks found free objects corrupted.
cdef void* alloc_checked(SlabAllocator allocator, kmem_cache* s, uint32_t gfp, int nid,
                         uint64_t orig_size, uint32_t handle) except? NULL

# Free an object of a debugged cache, which s (or NULL) is or it is of: AllocatorError when it is
# none or was written beyond; it stays Python's then.
cdef int free_checked(SlabAllocator allocator, kmem_cache* s, uint64_t addr,
                      uint32_t handle) except -1

# Free an object if it is of a debugged cache; whether it was.
cdef bint free_debugged(SlabAllocator allocator, uint64_t addr) except -1
