# The slab allocator's structures, and arithmetic on them.
#
# An object is in exactly one of four places: with its user, in a thread's magazine, in its
# node's depot, or on its slab's free list.  A slab counts the first three as in use, as Linux
# counts what its per-CPU arrays hold.
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from realmem.compiler cimport peeku64, spinlock
from realmem.types cimport (
    PAGE_SHIFT, PG_referenced, PG_slab, PG_tail, STRUCT_PAGE_SHIFT, cpu_area, list_head,
    machine, page, page_counts, page_kind,
)

cdef enum:
    MAGAZINE_SLOTS = 2046       # so that a thread that holds a thousand objects keeps to itself
    REMOTE_SLOTS = 35
    BATCH_SLOTS = 128
    DEPOT_SLOTS = 4088
    MAGAZINE_BYTES = 16704      # 261 cache lines: headers fall on all sets of the cache
    NR_MAGAZINES = 512          # of each area, so of a machine
    NO_MAGAZINE = 0             # the slot that is always empty and full: to the slow path
    KMALLOC_SHIFT_HIGH = 13
    KMALLOC_MAX_CACHE_SIZE = 8192
    NR_KMALLOC_SIZES = 14       # by kmalloc_index(); 0 is none
    NR_KMALLOC_TYPES = 4        # normal, dma, rcl, cg
    SLAB_LIVE = 0x51AB
    # page.flags of a slab that its checks took out of use: all its objects count as in use.
    SLAB_FROZEN = 1 << PG_referenced

# SLAB flags, realmem/layout.py's values.
cdef enum:
    SLAB_CONSISTENCY_CHECKS = 0x001
    SLAB_RED_ZONE = 0x002
    SLAB_POISON = 0x004
    SLAB_KMALLOC = 0x008
    SLAB_CACHE_DMA = 0x020
    SLAB_CACHE_DMA32 = 0x040
    SLAB_STORE_USER = 0x080
    SLAB_TYPESAFE_BY_RCU = 0x200
    SLAB_RECLAIM_ACCOUNT = 0x800
    SLAB_DEBUG_FLAGS = 0x087
    OBJECT_POISON = 0x40000000  # POISON, and nobody minds: free objects keep no state

# Free objects of one cache in one thread's area.  Only touched inside the area (types.pxd:
# cpu_area), so without lock or atomic operation.
#
# `top` counts bytes of slots, so the last object stands `top` bytes behind top itself; and an
# empty magazine, also one never used, reads top for it: 0, no object.
#
# Here, in kmem_cache and in cpu_area the words of the fast paths stand in the second half of a
# line.  Objects begin with lines or pages and are written there first, and a processor that
# compares the low bits of addresses only takes such a store for one to these words: a pair
# then costs up to twice as much.
cdef struct magazine:
    uint64_t nr_remote
    uint64_t pad[4]
    uint64_t end                # what top may grow to; 0 until first used
    uint64_t top
    void* slots[2046]           # MAGAZINE_SLOTS; the last is given out first
    void* remote[35]            # REMOTE_SLOTS: of other nodes, on their way home

# A cache's slabs on one node.
cdef struct kmem_cache_node:
    spinlock depot_lock
    uint32_t depot_n
    uint64_t pad[7]
    spinlock list_lock          # partial, and each slab's free list, inuse and list
    int32_t nid
    uint64_t nr_partial
    list_head partial           # slabs with free objects; all of them
    int64_t nr_slabs
    int64_t total_objects
    int64_t seen_slabs          # these are validate_slab's
    int64_t seen_objects
    int64_t seen_partial
    int64_t seen_inuse
    int64_t seen_cached
    list_head full              # the other slabs, of debugged caches only
    void* depot[4088]           # DEPOT_SLOTS: what magazines had too much of

cdef struct kmem_cache:
    # Read-only after creation.
    machine* machine
    void (*ctor)(void* object) noexcept nogil
    kmem_cache_node* nodes
    uint64_t bytes              # of this structure's mapping
    machine* fast_for           # machine.objects_fast
    uint32_t magazine_back      # from an area back to this cache's magazine
    uint32_t flags              # SLAB_*
    uint32_t object_size        # asked for
    uint32_t size               # stride
    uint32_t offset             # of the free pointer
    uint32_t inuse              # where metadata begins
    uint32_t align
    uint32_t red_left_pad
    uint32_t order
    uint32_t min_order
    uint32_t min_partial
    uint32_t gfp                # added to each request for pages
    uint32_t capacity           # of a magazine
    uint32_t depot_max          # objects
    uint32_t batch              # moved at once between magazine and depot or slabs
    int32_t python_ctor         # slabs are made by the face only
    int32_t slot                # of the magazine
    int32_t refcount            # names that it goes by
    int64_t nr_errors           # that its checks found
    kmem_cache* next            # newest first; guarded by slab_state.lock

cdef struct slab_state:
    machine* machine
    kmem_cache* kmalloc[4][14]  # [NR_KMALLOC_TYPES][NR_KMALLOC_SIZES]
    kmem_cache* dedicated[8]    # NR_DEDICATED; kernel_caches.pxd
    # Bit (address - direct_map) >> 3: a Python caller holds the object that starts there.
    # Only touched with the GIL; a slab starts with clear bits.
    uint8_t* given
    uint64_t given_bytes
    int64_t large_pages[64]     # of kmalloc() beyond the caches, by node
    spinlock lock               # the list of caches, and slots
    kmem_cache* caches
    void* log                   # slab_log.pxd; NULL until a cache is debugged
    int32_t nr_debugged         # caches
    uint8_t slots[512]          # NR_MAGAZINES: taken

# A struct page as the slab allocator fills it in; the frames behind the first carry
# cache and magazine_back too, so that kfree() need not look for the first.
cdef struct slab:
    uint64_t flags
    list_head list              # in kmem_cache_node.partial
    kmem_cache* cache
    void* freelist
    uint16_t inuse
    uint16_t objects
    uint32_t live               # SLAB_LIVE while it is counted
    page_counts counts
    page_kind kind
    uint32_t magazine_back

cdef inline slab_state* slab_of(const machine* m) noexcept nogil:
    return <slab_state*>m.slab

cdef inline magazine* area_magazine(cpu_area* area, uint64_t back) noexcept nogil:
    return <magazine*>(<uint64_t>area - back)

cdef inline void** last_slot(magazine* mag, uint64_t top) noexcept nogil:
    return <void**>(<char*>&mag.top + top)

cdef inline uint32_t magazine_count(const magazine* mag) noexcept nogil:
    return <uint32_t>(mag.top >> 3)

# The struct page of the frame that an object starts in.
cdef inline page* object_page(const machine* m, const void* object) noexcept nogil:
    return <page*>(<uint64_t>m.vmemmap
                   + ((<uint64_t>object - m.direct_map) >> PAGE_SHIFT << STRUCT_PAGE_SHIFT))

cdef inline slab* object_slab(const machine* m, const void* object) noexcept nogil:
    cdef page* p = object_page(m, object)
    if p.flags >> PG_tail & 1:
        return <slab*>p.index
    return <slab*>p

cdef inline bint is_slab(const page* p) noexcept nogil:
    return peeku64(<uint64_t*>&p.flags) >> PG_slab & 1

cdef inline void* slab_address(const machine* m, const slab* sl) noexcept nogil:
    return <void*>(m.direct_map
                   + ((<uint64_t>sl - <uint64_t>m.vmemmap) >> STRUCT_PAGE_SHIFT << PAGE_SHIFT))

cdef inline uint64_t slab_bytes(const slab* sl) noexcept nogil:
    return <uint64_t>1 << PAGE_SHIFT << sl.kind.h.order

# Whether an object lies on the node that the area's thread runs on.
cdef inline bint is_local(const cpu_area* area, const void* object) noexcept nogil:
    return <uint64_t>object - area.node_start < area.node_bytes

cdef inline slab* list_to_slab(list_head* entry) noexcept nogil:
    return <slab*>(<uint64_t>entry - 8)
