# vmalloc: frames from anywhere, mapped one after the other.
# Mirrors mm/vmalloc.c (Linux 6.18).
# Differs: the page table is the only list of an area's frames; frames are freed after their
# flush, which is not put off (invariant 7): what is lazy is the reuse of addresses.
# Addresses are the kernel's own (VMALLOC_START ...), multiples of a page.
# Context: may sleep in s.mm.lock and in host calls; not for the handler.
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t

from realmem._kernel.mm_types cimport mmu, vmap_space

# What a range of addresses was found to be, and what may be done with it.
cdef enum:
    VMAP_OK = 0
    VMAP_NO_PAGES = 1           # no frame, or none for a page table or a descriptor
    VMAP_NO_SPACE = 2           # no addresses
    VMAP_CLOSED = 3
    VMAP_UNALIGNED = 4
    VMAP_NOWHERE = 5            # no area is there
    VMAP_INTERIOR = 6           # inside an area, not its beginning
    VMAP_FREED = 7              # freed lately
    VMAP_OTHER_KIND = 8         # the beginning of an area of another kind

# One area, as /proc/vmallocinfo shows it.
cdef struct vmap_info:
    uint64_t start
    uint64_t end
    uint64_t flags
    uint64_t nr_pages
    uint64_t nodes[64]          # MAX_NUMNODES; pages on each

# Reserve length_ref[0] bytes of host addresses, halved down to 1 GiB while the host refuses
# (what it got goes back there).
# Preconditions: with the GIL held, s is zeroed and u is ready.
# Returns: VMAP_OK, VMAP_NO_SPACE or VMAP_NO_PAGES.
cdef int vmap_init(vmap_space* s, mmu* u, uint64_t* length_ref) noexcept nogil
# Unmap and free everything; the addresses stay reserved until window_reap().
cdef void vmap_exit(vmap_space* s) noexcept nogil

# `size` bytes of frames, from node nid first (-1: the calling CPU's), and a guard page.
# `flags` (0 or VMAP_CALLER) are the area's besides VM_ALLOC.
# Mirrors: __vmalloc_node_range() => vm_area_alloc_pages(), vmap_pages_range().
# Preconditions: 0 < size, align is a power of two from PAGE_SIZE on.
# Returns: VMAP_OK with addr_ret set; else nothing is left behind.
cdef int vmalloc_range(vmap_space* s, uint64_t size, uint64_t align, uint32_t gfp, int nid,
                       uint64_t flags, uint64_t* addr_ret) noexcept nogil

# Map n frames that somebody else owns; `kind` is VM_MAP (with a guard page) or VMAP_RAM.
# A reference is held on the head of each block, so that no frame is freed under the mapping.
# Mirrors: vmap(), vm_map_ram().
# Preconditions: every frame is allocated.
cdef int vmap_frames(vmap_space* s, const uint64_t* pfns, uint64_t n, uint64_t kind,
                     bint writable, uint64_t* addr_ret) noexcept nogil

# End the area of a kind that begins at addr: entries, host mappings, then frames and references.
# With `pages` not 0 it has to be that long.
# Mirrors: vfree(), vunmap(), vm_unmap_ram() => remove_vm_area().
cdef int vmap_free(vmap_space* s, uint64_t addr, uint64_t kind, uint64_t pages) noexcept nogil

# Note that an area is to be freed: a second vfree() is one too many from now on.
# Mirrors: vfree_atomic().
cdef int vmap_defer(vmap_space* s, uint64_t addr) noexcept nogil

# Make the addresses of freed areas free; with no area left, nor keep slabs for more.
# Mirrors: vm_unmap_aliases().
cdef void vmap_purge(vmap_space* s) noexcept nogil

# The frame behind an address, or -1.
# Mirrors: vmalloc_to_pfn().
cdef int64_t vmap_to_pfn(vmap_space* s, uint64_t addr) noexcept nogil

# Whether [addr, addr + size) lies in the pages of one area.
cdef bint vmap_covers(vmap_space* s, uint64_t addr, uint64_t size) noexcept nogil

# The first area at or above addr; the i-th freed one that waits for a purge.
# Returns: whether there is one.
cdef bint vmap_next_info(vmap_space* s, uint64_t addr, vmap_info* ret) noexcept nogil
cdef bint vmap_lazy_info(vmap_space* s, int64_t i, vmap_info* ret) noexcept nogil
