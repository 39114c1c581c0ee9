# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
# cython: initializedcheck=False, nonecheck=False, profile=False, linetrace=False
from libc.stdint cimport int64_t, uint32_t, uint64_t

from realmem._kernel.kmalloc cimport kfree, kmalloc, kmalloc_node
from realmem._kernel.mm_types cimport VM_ALLOC, vmap_space
from realmem._kernel.vmap cimport (
    VMAP_NOWHERE, VMAP_OK, vmalloc_range, vmap_free, vmap_to_pfn,
)
from realmem.types cimport GFP_DIRECT_RECLAIM, PAGE_SHIFT, PAGE_SIZE, machine, page, pfn_to_page


cdef void* vmalloc(machine* m, uint64_t size, uint32_t gfp) noexcept nogil:
    return vmalloc_node(m, size, gfp, -1)


cdef void* vmalloc_node(machine* m, uint64_t size, uint32_t gfp, int nid) noexcept nogil:
    cdef vmap_space* s = <vmap_space*>m.vmap
    cdef uint64_t addr = 0
    if s == NULL or size - 1 >= m.max_pfn << PAGE_SHIFT:
        return NULL
    if vmalloc_range(s, size, PAGE_SIZE, gfp, nid, 0, &addr) != VMAP_OK:
        return NULL
    return <void*>(s.mm.windows.host_base + (addr - s.mm.windows.user_start))


cdef bint is_vmalloc_addr(const machine* m, const void* addr) noexcept nogil:
    cdef const vmap_space* s = <const vmap_space*>m.vmap
    return s != NULL and <uint64_t>addr - s.mm.windows.host_base < s.mm.windows.length


# The kernel's own address.  Preconditions: is_vmalloc_addr().
cdef inline uint64_t kernel_address(const vmap_space* s, const void* addr) noexcept nogil:
    return s.mm.windows.user_start + (<uint64_t>addr - s.mm.windows.host_base)


cdef int vfree(machine* m, const void* addr) noexcept nogil:
    cdef vmap_space* s = <vmap_space*>m.vmap
    if addr == NULL:
        return VMAP_OK
    if not is_vmalloc_addr(m, addr):
        return VMAP_NOWHERE
    return vmap_free(s, kernel_address(s, addr), VM_ALLOC, 0)


cdef page* vmalloc_to_page(machine* m, const void* addr) noexcept nogil:
    cdef vmap_space* s = <vmap_space*>m.vmap
    cdef int64_t pfn = -1
    if is_vmalloc_addr(m, addr):
        pfn = vmap_to_pfn(s, kernel_address(s, addr))
    return NULL if pfn < 0 else pfn_to_page(m, <uint64_t>pfn)


cdef void* kvmalloc(machine* m, uint64_t size, uint32_t gfp) noexcept nogil:
    return kvmalloc_node(m, size, gfp, -1)


cdef void* kvmalloc_node(machine* m, uint64_t size, uint32_t gfp, int nid) noexcept nogil:
    cdef uint32_t light = kmalloc_gfp_adjust(gfp, size)
    cdef void* object
    if size > KVMALLOC_MAX_SIZE:
        return NULL
    object = kmalloc(m, size, light) if nid < 0 else kmalloc_node(m, size, light, nid)
    if object != NULL or size <= PAGE_SIZE or not gfp & GFP_DIRECT_RECLAIM:
        return object
    return vmalloc_node(m, size, gfp, nid)


cdef void kvfree(machine* m, const void* addr) noexcept nogil:
    if is_vmalloc_addr(m, addr):
        vfree(m, addr)
    else:
        kfree(m, addr)
