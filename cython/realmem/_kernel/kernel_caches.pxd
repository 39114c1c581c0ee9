# The slab caches that realmem's own kernel-side objects live in (their structures: mm_types.pxd).
# realmem/slab.py makes the caches, with a machine's generic ones.
from libc.stdint cimport int64_t

from realmem._kernel.slab_types cimport kmem_cache, slab_of
from realmem.types cimport machine

# Indices into slab_state.dedicated.
cdef enum:
    TASK_STRUCT = 0
    MM_STRUCT = 1
    VM_AREA_STRUCT = 2
    VMAP_AREA = 3
    ANON_VMA = 4
    ANON_VMA_CHAIN = 5          # empty: relatives share an anon_vma (rmap.pyx)
    SHMEM_INODE = 6
    RADIX_TREE_NODE = 7
    NR_DEDICATED = 8            # slab_types.pxd has the array

# An object of one of them; NULL without memory.
# Context: signal-safe; callers may hold an mm.lock.
cdef void* kernel_alloc(machine* m, int which) noexcept nogil
# Preconditions: object came from there; or is NULL.
cdef void kernel_free(machine* m, int which, void* object) noexcept nogil

# Objects that their users hold: neither free nor at hand in a thread or a depot.
# Context: not inside an area; stops every user of m for a moment.
cdef int64_t objects_held(kmem_cache* s) noexcept nogil

# What anon_vma's cache does once to each object.
# Mirrors: mm/rmap.c:anon_vma_ctor().
cdef void anon_vma_ctor(void* object) noexcept nogil

cdef inline kmem_cache* dedicated_cache(const machine* m, int which) noexcept nogil:
    return slab_of(m).dedicated[which]

# Whether it is one of them, whatever names it goes by as well.
cdef inline bint is_dedicated(const kmem_cache* s) noexcept nogil:
    cdef int which
    for which in range(NR_DEDICATED):
        if dedicated_cache(s.machine, which) == s:
            return True
    return False
