# Slab caches as Python sees them.
from libc.stdint cimport uint32_t, uint64_t

from realmem._core.pages cimport PageAllocator
from realmem._core.stack_depot cimport StackDepot
from realmem._kernel.slab_types cimport kmem_cache, slab_state
from realmem.types cimport machine

cdef class SlabAllocator:
    cdef PageAllocator pages
    cdef machine* m
    cdef slab_state* state
    cdef readonly dict caches       # handles by name, oldest first
    cdef StackDepot depot           # who allocated and freed, for caches with STORE_USER
    cdef object reporter            # told of what the checks of debugged caches found

    cdef int usable(self) except -1
    cdef int may_alloc(self, uint32_t gfp) except -1
    # Note that Python holds an object, and that it gives it back: AllocatorError unless it is a
    # live object of cache s (of any cache: NULL); 1 when compiled code had allocated it.
    cdef void hand_out(self, const void* object) noexcept
    cdef int take_back(self, kmem_cache* s, uint64_t addr) except -1
    cdef int judge(self, kmem_cache* s, uint64_t addr) except -1
    # Have what was found written down; the text of what concerns a cache is the caller's to show.
    cdef str collect(self, str name)
    cdef str name_at(self, kmem_cache* s)   # the oldest of its names
