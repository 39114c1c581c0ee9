# The structures that both sides share, and arithmetic on them.
# Sizes are in pages unless a name says otherwise.
from libc.stdint cimport int8_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from realmem.compiler cimport peeku64, spinlock

cdef enum:
    PAGE_SHIFT = 12
    PAGE_SIZE = 4096
    MAX_PAGE_ORDER = 10
    NR_PAGE_ORDERS = 11
    PAGEBLOCK_ORDER = 9
    PAGEBLOCK_NR_PAGES = 512
    PAGE_ALLOC_COSTLY_ORDER = 3
    HPAGE_PMD_ORDER = 9
    STRUCT_PAGE_SIZE = 64
    STRUCT_PAGE_SHIFT = 6

# Zones by kind; a machine's zone table has MAX_NR_ZONES entries a node.
cdef enum:
    ZONE_DMA = 0
    ZONE_DMA32 = 1
    ZONE_NORMAL = 2
    ZONE_MOVABLE = 3
    MAX_NR_ZONES = 4

cdef enum:
    MIGRATE_UNMOVABLE = 0
    MIGRATE_MOVABLE = 1
    MIGRATE_RECLAIMABLE = 2
    MIGRATE_PCPTYPES = 3        # the types that per-CPU lists keep
    MIGRATE_HIGHATOMIC = 3
    MIGRATE_ISOLATE = 4
    MIGRATE_TYPES = 5

# Orders 0..3 by type, then the THP order: movable and not (as since Linux 6.10).
cdef enum:
    NR_LOWORDER_PCP_LISTS = 12
    NR_PCP_LISTS = 14

cdef enum:
    WMARK_MIN = 0
    WMARK_LOW = 1
    WMARK_HIGH = 2
    WMARK_PROMO = 3
    NR_WMARK = 4

# GFP bits, Linux's values (include/linux/gfp_types.h).
cdef enum:
    GFP_DMA = 0x01
    GFP_HIGHMEM = 0x02
    GFP_DMA32 = 0x04
    GFP_MOVABLE = 0x08
    GFP_RECLAIMABLE = 0x10
    GFP_HIGH = 0x20
    GFP_IO = 0x40
    GFP_FS = 0x80
    GFP_ZERO = 0x100
    GFP_DIRECT_RECLAIM = 0x400
    GFP_KSWAPD_RECLAIM = 0x800
    GFP_WRITE = 0x1000
    GFP_NOWARN = 0x2000
    GFP_RETRY_MAYFAIL = 0x4000
    GFP_NOFAIL = 0x8000
    GFP_NORETRY = 0x10000
    GFP_MEMALLOC = 0x20000
    GFP_COMP = 0x40000
    GFP_NOMEMALLOC = 0x80000
    GFP_HARDWALL = 0x100000
    GFP_THISNODE = 0x200000
    GFP_ACCOUNT = 0x400000
    GFP_KERNEL = 0xCC0
    GFP_ATOMIC = 0x820
    GFP_HIGHUSER_MOVABLE = 0x100CCA
    # What is asked for under an mm.lock or an object's: reclaim takes those for who may start I/O,
    # and who asked tries again without them (vmscan.pxd).
    GFP_NOFS = 0xC40
    GFP_NOIO = 0xC00
    GFP_FAULT = 0x100C0A        # GFP_HIGHUSER_MOVABLE, likewise

cdef enum:
    NUMA_HIT = 0
    NUMA_MISS = 1
    NUMA_FOREIGN = 2
    NUMA_INTERLEAVE_HIT = 3
    NUMA_LOCAL = 4
    NUMA_OTHER = 5
    NR_VM_NUMA_EVENT_ITEMS = 6

# Events counted for the whole machine (the others are counted a zone).
cdef enum:
    PGFREE = 0
    PGFAULT = 1
    PGMAJFAULT = 2
    PGREUSE = 3
    ALLOCSTALL = 4              # one for each kind of zone
    KSWAPD_WAKE = 8             # times the low watermark asked for kswapd
    HOST_SIGSEGV = 9            # the rest are machine.hoststat's
    HOST_MAP_FILL = 10
    HOST_MAP_FLUSH = 11
    HOST_MPROTECT = 12
    HOST_SPURIOUS = 13
    HOST_FORBIDDEN = 14
    HOST_CONTINUE = 15
    HOST_DONATION = 16
    PSWPIN = 17                 # pages; reclaim's are from here on
    PSWPOUT = 18
    PGACTIVATE = 19
    PGDEACTIVATE = 20
    PGLAZYFREED = 21
    PGREFILL = 22
    PGSTEAL_KSWAPD = 23         # each of the next four pairs in the order of NR_RECLAIMERS
    PGSTEAL_DIRECT = 24
    PGSCAN_KSWAPD = 25
    PGSCAN_DIRECT = 26
    PGSCAN_ANON = 27
    PGSCAN_FILE = 28
    PGSTEAL_ANON = 29
    PGSTEAL_FILE = 30
    PAGEOUTRUN = 31
    NR_VM_EVENT_ITEMS = 32

cdef struct list_head:
    list_head* next
    list_head* prev

# ---- struct page: 64 bytes a frame, on the frame's own node ----

# What a frame is.  Exactly one head state for the first frame of each block; every
# other frame of a block is PAGE_TAIL, so that a wild free is told from a good one
# without touching the tails of a block on the fast path.
cdef enum:
    PAGE_TAIL = 0               # inside a block that an earlier frame heads
    PAGE_RESERVED = 1           # boot memory: the struct page array itself
    PAGE_BUDDY = 2              # heads a free block in a zone's free area
    PAGE_PCP = 3                # heads a free block in a per-CPU list
    PAGE_ALLOCATED = 4          # heads an allocated block
    PAGE_BAD = 5                # taken out of use: found corrupted

# page.flags: low bits PG_*; from bit 24 how many locked mappings a page has (it is PG_mlocked
# when any); from bit 48 the zone's index in machine.zones.
cdef enum:
    PG_locked = 0
    PG_referenced = 1
    PG_uptodate = 2
    PG_dirty = 3
    PG_lru = 4
    PG_head = 5
    PG_active = 6
    PG_slab = 7
    PG_reserved = 8
    PG_swapbacked = 9
    PG_unevictable = 10
    PG_mlocked = 11
    PG_table = 12
    PG_anon = 13
    PG_anon_exclusive = 14
    PG_tail = 15                # of a compound page; compound_head is valid
    PG_zero = 16                # the shared zero page
    PG_poisoned = 17            # free, and holds PAGE_POISON
    PG_quicklist = 18           # allocated, and on a quicklist: all zero but its first word
    PG_vmalloc = 19             # behind a vmalloc area, which owns it
    PG_file = 20                # of a file, whose bytes it holds
    PG_swapcache = 21           # a place in a swap area is, or will be, its copy (page.slab_word)
    PG_young = 22               # found used while reclaim looked at its neighbour
    PG_shmem = 23               # of shared anonymous memory
    NR_PAGEFLAGS = 24
    PAGE_MLOCK_SHIFT = 24
    PAGE_ZONE_SHIFT = 48
    # None of locked lru active slab reserved unevictable mlocked table tail zero quicklist
    # vmalloc swapcache on a page that is being freed.
    PAGE_FLAGS_CHECK_AT_FREE = 0x2D9DD1
    PAGE_POISON = 0xAA          # include/linux/poison.h

cdef struct page_ref:
    int32_t refcount
    int32_t mapcount            # number of mappings - 1, as in Linux

# One 64-bit word: the fast path stores and tests both counts at once (a 4-byte store
# followed by an 8-byte load would stall).
cdef union page_counts:
    uint64_t word
    page_ref c

# Both head fields in one word, for one test on the fast path.
cdef struct page_head:
    uint8_t state               # PAGE_*
    uint8_t order               # of the block this page heads; 0 otherwise
    uint8_t migratetype         # asked for while allocated; the list's while free
    uint8_t pad
cdef union page_kind:
    uint32_t word
    page_head h

cdef struct page:
    uint64_t flags
    list_head lru               # buddy, per-CPU list or LRU; free for the owner otherwise
    void* mapping               # owner: anon_vma, address space, slab cache
    uint64_t index              # owner; compound head pointer while PG_tail
    uint64_t private
    page_counts counts
    page_kind kind
    # Of slabs' frames: slab.magazine_back; of those in the swap cache, their place (swap.pxd);
    # 0 in all others.
    uint32_t slab_word

# page.counts.word of a free page (refcount 0, mapcount -1) and of a new one (1, -1).
cdef extern from *:
    """
    #define RM_COUNTS_FREE 0xFFFFFFFF00000000ULL
    #define RM_COUNTS_NEW  0xFFFFFFFF00000001ULL
    """
    const uint64_t COUNTS_FREE "RM_COUNTS_FREE"
    const uint64_t COUNTS_NEW "RM_COUNTS_NEW"

cdef struct free_area:
    list_head free_list[5]      # by migratetype, MIGRATE_TYPES of them
    int64_t nr_free[5]          # blocks, by migratetype

# Frames in a row that are kept for the 2 MiB of one page table (_kernel/run.pyx).  Those that were
# not given out count as free, and whoever finds no other free block has them.
cdef struct page_run:
    page_run* next              # of zone.runs, or of zone.spare_runs; zone.lock
    page_run* prev
    zone* z
    uint64_t pfn                # the first
    int64_t unused              # frames left; 0: given out, or taken back; zone.lock
    uint64_t used[8]            # bit by frame: given out; zone.lock and the table's mm.lock
    # Bit by page: where the entry does not say what the host has mapped, it is this run's frame,
    # without access.  Guarded by mm.lock.
    uint64_t mapped[8]
    int64_t registered          # ... and pages of it are opened through userfaultfd; mm.lock
    uint64_t pad[2]

cdef struct zone:
    # Read-mostly: written by machine construction and sysctl publication only.
    machine* machine
    uint64_t watermark[4]       # NR_WMARK: min low high promo
    uint64_t lowmem_reserve[4]  # by the highest zone the caller may use
    uint64_t start_pfn
    uint64_t spanned_pages
    uint64_t present_pages
    uint64_t managed_pages
    int32_t nid
    int32_t kind                # ZONE_*
    int32_t index               # in machine.zones
    int32_t batch               # pcp: refill and drain size
    int32_t high_min
    int32_t high_max
    uint8_t* pageblock          # migratetype of each 2 MiB block that the zone touches
    uint64_t pageblock_start    # pfn >> PAGEBLOCK_ORDER of pageblock[0]
    # Written by allocation; guarded by lock except that free_pages, nr_free_highatomic
    # and area_mask are read without it (watermark tests are estimates, as in Linux).
    spinlock lock
    uint32_t flags              # ZONE_* bits below
    int64_t free_pages          # == sum(nr_free[o][t] << o) + run_pages
    int64_t nr_free_highatomic  # those of free_pages that stand in high-atomic lists
    int64_t nr_reserved_highatomic
    # Bit o of [t]: free_area[o].free_list[t] is not empty.  The first four are also read as
    # one word (alloc_memo.areas).
    uint16_t area_mask[8]
    # The block that was cut last, while nothing else has happened to the free lists; its
    # merging waits while split_free (buddy.pyx: settle_locked()).
    page* split
    uint8_t split_order
    uint8_t split_from          # order of the block that it was cut from
    uint8_t split_type
    uint8_t split_free          # it was given back
    uint16_t split_mask         # area_mask[split_type] as the lists are
    free_area free_area[11]
    # Runs that have frames left, the oldest first; which one a pageblock is of; records.
    page_run* runs
    page_run* last_run
    page_run** run_at           # by pageblock, as `pageblock`
    page_run* spare_runs
    page_run* fresh_runs        # records that were never used, up to
    page_run* end_of_runs
    int64_t run_pages           # frames left in runs
    uint64_t pcp_overdrafts     # times a per-CPU list was drained for pressure

cdef enum:
    ZONE_BELOW_HIGH = 1         # free pages fell under the high mark: per-CPU lists stop growing
    ZONE_RECLAIM_ACTIVE = 2

# One zone's lists of one thread.  Linux keeps one per CPU behind a trylock; here each
# thread has its own, tagged with the CPU it last ran on, so that no lock is needed.
cdef struct per_cpu_pages:
    int32_t count               # pages in all lists
    int32_t free_count          # pages freed since the last allocation
    int32_t high                # between the zone's high_min and high_max
    uint16_t pad
    # The next two are also read as one (free_memo.block).
    uint8_t alloc_factor        # refill doubles up to batch << alloc_factor
    uint8_t flags               # PCPF_*
    uint32_t list_mask          # bit i: lists[i] is not empty
    uint32_t pad2
    uint64_t pgalloc            # pages
    uint64_t numa[6]            # NR_VM_NUMA_EVENT_ITEMS
    # Blocks that the fast path gave out, by order, which pgalloc and numa do not count:
    # [0] to a thread of another node, [1] to one of this.
    uint64_t served[2][11]
    list_head lists[14]         # NR_PCP_LISTS

cdef enum:
    PCPF_PREV_FREE_HIGH_ORDER = 1

# What the last request of an order came to: all that the fast path needs, worked out by the
# slow path.  Forgotten (NO_REQUEST, no flags match) when something that it rests on changes:
# the thread's CPU, a zone's marks or list sizes, anything that freezes the areas.  The
# pageblock's type can change at any time, and is compared at each free.
# The fast path is bound by its loads and stores, so fields that it reads together share words.
cdef struct alloc_memo:
    uint64_t request            # gfp, and the node asked << 32
    zone* z                     # first of the zonelist
    int64_t mark                # pages that z must have free
    uint64_t areas              # area_mask bits of lists that have blocks as large
    list_head* head             # this thread's list
    per_cpu_pages* pcp
    uint64_t* served            # counter
    uint64_t block              # pages, and page.kind once allocated << 32

cdef struct free_memo:
    uint64_t flags              # of a page of z that may go back as it is
    const uint8_t* types        # pageblock types by address of struct page >> TYPES_SHIFT
    zone* z
    list_head* head             # this thread's list for
    per_cpu_pages* pcp
    uint64_t block              # pages, pageblock type << 32, alloc_factor and flags << 48
    uint64_t limit              # of pcp.free_count, page.kind << 32
    uint64_t pad

cdef enum:
    TYPES_SHIFT = 15            # a pageblock's struct pages: STRUCT_PAGE_SHIFT + PAGEBLOCK_ORDER
cdef extern from *:
    const uint64_t NO_REQUEST "UINT64_MAX"

# Zeroed pages for page tables, linked through their first words.
cdef struct quicklist:
    uint64_t* page              # direct-map address of the last one that came; NULL when empty
    int32_t nr_pages
    int32_t nid                 # every page's node

# Per-thread data.  Only its thread touches it between busy = 1 and busy = 0; another
# thread that wants in sets `stolen`, makes every thread pass a barrier (membarrier),
# waits for busy == 0 and takes `lock`; while stolen is set the owner takes `lock` too.
# So the owner pays two plain stores, and the thief pays for both.
cdef struct cpu_area:
    machine* machine
    int32_t cpu                 # host CPU at the last entry; writer: owner
    int32_t nid                 # its simulated node
    int32_t atomic_depth        # machine.atomic_context() nesting; writer: owner
    int32_t locked              # the owner came in by the lock; writer: holder of lock
    spinlock lock
    int32_t mem_nid             # the nearest node with memory, and
    uint64_t node_start         # ... where its memory begins at the host
    uint64_t node_bytes
    machine* fast               # the machine while memos may be used, NULL while stolen
    int busy                    # writer: owner
    int stolen                  # writer: under machine.areas_lock
    # ---- cache line
    cpu_area* next              # all areas of a machine; guarded by machine.areas_lock
    cpu_area* thread_next       # all areas of a thread
    uint64_t bytes              # of all, what stands before this structure included
    uint64_t events[NR_VM_EVENT_ITEMS]
    per_cpu_pages* pcp          # machine.nr_zones of them, behind this structure
    int64_t run_on              # node that the thread acts for, plus 1; 0: that of its CPU
    uint64_t pad[2]             # each memo is one cache line
    alloc_memo allocs[11]       # by order
    free_memo frees[11]
    quicklist quick
    page* lru_pages[15]         # LRU_BATCH: new ones, which go to the LRU lists together
    int64_t nr_lru_pages

cdef enum:
    LRU_BATCH = 15
    FAST_FOR_NOBODY = 1
    # Bytes in front of each cpu_area: the slab allocator's magazines (slab_types.pxd), and nine
    # lines lest areas share a cache's set with all the structures that begin with a page.
    AREA_MAGAZINES = 8553024

cdef struct node:
    int32_t nid
    int32_t host_node
    int32_t emulated
    int32_t nr_cpus
    uint64_t start_pfn
    uint64_t spanned_pages
    uint64_t present_pages      # managed + memmap
    uint64_t memmap_pfn         # frames taken for the struct page array
    uint64_t memmap_pages

cdef enum:
    MAX_NUMNODES = 64
    MACHINE_POISON = 1          # machine.options bits
    MACHINE_PAGE_OWNER = 2
    MACHINE_DEBUG = 4           # debug=1 or more: locks are checked as they are taken
    MACHINE_INJECT = 16         # some attempts to allocate pages are made to fail
    MACHINE_INJECT_SLAB = 32    # ... objects

# What can be made to fail.
cdef enum:
    INJECT_PAGE_ALLOC = 0
    INJECT_SLAB = 1
    NR_INJECT_POINTS = 2

# When attempts fail.  Compare struct fault_attr (include/linux/fault-inject.h).
cdef struct fault_attr:
    spinlock lock
    int32_t active
    uint64_t nth                # attempts until one fails; 0: none by number
    uint64_t threshold          # of 2**32: so likely is any other to fail
    int64_t times               # failures left; negative: no limit
    uint64_t random             # state
    uint64_t attempts           # since it was set
    uint64_t failures

cdef struct machine:
    # Read-mostly after construction.
    uint64_t direct_map         # host address of physical 0
    page* vmemmap               # struct page of pfn 0; mapped only where there is memory
    uint64_t max_pfn            # one past the last frame
    # What area.fast is compared with on the fast paths of objects: this machine while all its
    # memory is local and nothing else asks for more than they do, else FAST_FOR_NOBODY.
    machine* objects_fast
    int32_t nr_nodes
    int32_t nr_zones            # nr_nodes * MAX_NR_ZONES
    node* nodes
    zone* zones
    # zonelists[(nid * 2 + thisnode) * MAX_NR_ZONES + highest_zone]: zone pointers, NULL last
    zone*** zonelists
    int32_t* cpu_to_node        # by host CPU; nr_cpu_ids of them
    int32_t nr_cpu_ids
    uint32_t options            # MACHINE_*
    int32_t nofragment          # Linux's ALLOC_NOFRAGMENT rule applies (see page_alloc)
    int32_t numa                # more than one node
    uint64_t id                 # never reused within a host process
    # Called when an allocation that may reclaim and start I/O finds nothing: returns pages freed.
    # NULL while there is nothing that it could take.
    int64_t (*reclaim)(machine* m, zone* preferred, uint32_t gfp,
                       unsigned int order) noexcept nogil
    # The slab allocator's part of it: calls in free objects, returns pages.  NULL without one.
    int64_t (*shrink_objects)(machine* m) noexcept nogil
    void* slab                  # slab_state (_kernel/slab_types.pxd)
    # Areas of the threads that used this machine.
    spinlock areas_lock
    cpu_area* areas
    cpu_area* shared_area       # for threads first seen inside the handler; always stolen
    uint64_t area_bytes
    # What ended threads' areas had counted.
    uint64_t events[NR_VM_EVENT_ITEMS]
    uint64_t* zone_events       # nr_zones * (1 + NR_VM_NUMA_EVENT_ITEMS): pgalloc, numa[]
    # Frames found corrupted when they were to be given out; the last one's number.
    int64_t nr_bad_pages
    uint64_t bad_pfn
    fault_attr faults[2]        # NR_INJECT_POINTS
    void* vmap                  # vmap_space (_kernel/mm_types.pxd); NULL until it is used
    void* mmu                   # mmu (_kernel/mm_types.pxd); NULL without one
    # Called when an allocation finds no zone of the list above its low mark.  NULL: nobody wakes.
    void (*wake_kswapd)(machine* m, zone** zonelist) noexcept nogil
    void (*drain_lru)(machine* m, cpu_area* area) noexcept nogil

cdef inline uint64_t page_to_pfn(const machine* m, const page* p) noexcept nogil:
    return (<uint64_t>p - <uint64_t>m.vmemmap) >> STRUCT_PAGE_SHIFT

cdef inline page* pfn_to_page(const machine* m, uint64_t pfn) noexcept nogil:
    return <page*>(<uint64_t>m.vmemmap + (pfn << STRUCT_PAGE_SHIFT))

cdef inline zone* page_zone(const machine* m, const page* p) noexcept nogil:
    return m.zones + (peeku64(<uint64_t*>&p.flags) >> PAGE_ZONE_SHIFT)

cdef inline unsigned int page_mlock_count(uint64_t flags) noexcept nogil:
    return <unsigned int>(flags >> PAGE_MLOCK_SHIFT) & 0xFFFFFF

cdef inline uint64_t page_address(const machine* m, const page* p) noexcept nogil:
    return m.direct_map + (page_to_pfn(m, p) << PAGE_SHIFT)

cdef inline uint64_t pfn_address(const machine* m, uint64_t pfn) noexcept nogil:
    return m.direct_map + (pfn << PAGE_SHIFT)

cdef inline void list_init(list_head* head) noexcept nogil:
    head.next = head
    head.prev = head

cdef inline bint list_empty(const list_head* head) noexcept nogil:
    return head.next == head

cdef inline void list_add(list_head* entry, list_head* head) noexcept nogil:
    cdef list_head* first = head.next
    first.prev = entry
    entry.next = first
    entry.prev = head
    head.next = entry

cdef inline void list_add_tail(list_head* entry, list_head* head) noexcept nogil:
    cdef list_head* last = head.prev
    last.next = entry
    entry.prev = last
    entry.next = head
    head.prev = entry

cdef inline void list_del(list_head* entry) noexcept nogil:
    cdef list_head* prev = entry.prev
    cdef list_head* next = entry.next
    prev.next = next
    next.prev = prev

# The page whose lru field is `entry`.
cdef inline page* lru_to_page(list_head* entry) noexcept nogil:
    return <page*>(<uint64_t>entry - 8)
