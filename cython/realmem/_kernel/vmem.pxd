# vmalloc() and kvmalloc() of a machine, for compiled users: addresses are the host's.
# Mirrors mm/vmalloc.c, mm/slub.c (Linux 6.18).
#
# A machine's vmalloc area is made when Python first uses it, by machine.vmalloc_area for one;
# until then there is no memory of it to be had.
# Context: all of them may sleep: not for the handler, nor while machine.close() may run.
from libc.stdint cimport uint32_t, uint64_t

from realmem.types cimport (
    GFP_NOFAIL, GFP_NORETRY, GFP_NOWARN, GFP_RETRY_MAYFAIL, PAGE_SIZE, machine, page,
)

# `size` bytes, rounded up to pages; a guard page follows.  NULL without memory or area.
# Mirrors: vmalloc(), vmalloc_node().  GFP_ZERO clears it.
cdef void* vmalloc(machine* m, uint64_t size, uint32_t gfp) noexcept nogil
cdef void* vmalloc_node(machine* m, uint64_t size, uint32_t gfp, int nid) noexcept nogil

# Free what vmalloc() gave, Python's too; NULL does nothing.
# Returns: VMAP_OK, or what is wrong with it (vmap.pxd), with nothing changed.
cdef int vfree(machine* m, const void* addr) noexcept nogil

# Whether an address lies in the area; the struct page behind it, NULL where nothing is mapped.
cdef bint is_vmalloc_addr(const machine* m, const void* addr) noexcept nogil
cdef page* vmalloc_to_page(machine* m, const void* addr) noexcept nogil

# kmalloc() if that is easy, else vmalloc(); NULL without memory.
# Mirrors: __kvmalloc_node_noprof(), kvfree().
cdef void* kvmalloc(machine* m, uint64_t size, uint32_t gfp) noexcept nogil
cdef void* kvmalloc_node(machine* m, uint64_t size, uint32_t gfp, int nid) noexcept nogil
# Preconditions: it was not freed since.
cdef void kvfree(machine* m, const void* addr) noexcept nogil

cdef enum: KVMALLOC_MAX_SIZE = 0x7FFFFFFF

# How the first of the two is asked: a short look, since there is another way.
# Mirrors: kmalloc_gfp_adjust().
cdef inline uint32_t kmalloc_gfp_adjust(uint32_t gfp, uint64_t size) noexcept nogil:
    if size > PAGE_SIZE:
        gfp |= GFP_NOWARN
        if not gfp & GFP_RETRY_MAYFAIL:
            gfp |= GFP_NORETRY
        gfp &= ~<uint32_t>GFP_NOFAIL
    return gfp
