# Address spaces as the kernel side sees them (compare include/linux/mm_types.h).
# RULES.md has the lock order; a field's comment ends with its lock.
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t

from realmem._kernel.host_calls cimport mutex
from realmem.compiler cimport spinlock
from realmem.types cimport (
    PG_anon, PG_anon_exclusive, PG_swapbacked, PG_uptodate, list_head, machine, page, pfn_to_page,
)

cdef enum:
    PGDIR_SHIFT = 39
    PUD_SHIFT = 30
    PMD_SHIFT = 21
    PTRS_PER_TABLE = 512
    GIB_SHIFT = 30

cdef enum: USER_PGD_PTRS = 256
cdef enum: TASK_SIZE = 0x7FFFFFFFF000
cdef enum: PAGE_OFFSET_PGD = 273        # PGD index of the direct map, 0xffff888000000000
cdef enum: VMALLOC_PGD = 402            # PGD index of the vmalloc area, 0xffffc90000000000
cdef extern from *:
    const uint64_t VMALLOC_START "0xffffc90000000000ULL"
cdef enum: VMALLOC_MAX_SHIFT = 39       # its share of one PGD entry, which all PGDs have

# x86-64 page-table entry bits.
cdef enum:
    PTE_PRESENT = 0x001
    PTE_RW = 0x002
    PTE_USER = 0x004
    PTE_ACCESSED = 0x020
    PTE_DIRTY = 0x040
    PTE_PSE = 0x080
    PTE_GLOBAL = 0x100
    # With PTE_PRESENT clear: a frame that nothing may touch; in a VMA that may be touched, a
    # NUMA hint: who does is to be noticed.
    PTE_PROTNONE = 0x100
    PTE_SPECIAL = 0x200         # software: the zero page, or a vmap()ed frame; not counted
    PTE_SOFT_DIRTY = 0x800      # software: stored to since /proc/PID/clear_refs said so
    PTE_TABLE = 0x067           # present, RW, user, accessed, dirty: an entry to a table
    PTE_KERNEL_TABLE = 0x063
    PTE_HOST_SHIFT = 52         # software, two bits: what the host has mapped here, HOST_*
cdef enum:
    PTE_NX = 0x8000000000000000
    PTE_PFN_MASK = 0x000FFFFFFFFFF000
    PTE_HOST_MASK = 0x0030000000000000

# The host's mapping of one page of a window (our TLB entry), kept in the PTE.
cdef enum:
    HOST_NONE = 0               # the bare reservation, or something not tracked here
    HOST_NOACC = 1              # this frame, mapped PROT_NONE
    HOST_READ = 2               # this frame, PROT_READ
    HOST_WRITE = 3              # this frame, PROT_READ | PROT_WRITE

# Entries that map nothing: a type above PTE_TYPE_SHIFT, as Linux's swap entries have one.
cdef enum:
    PTE_TYPE_SHIFT = 59
cdef extern from *:
    const uint64_t PTE_GUARD "0xF800000000000000ULL"     # a guard region's marker
# A page in a swap area: the area's type plus one, the slot where a frame's number would stand.
cdef enum:
    MAX_SWAPFILES = 28
    PTE_SWP_SOFT_DIRTY = 0x002  # PTE_SOFT_DIRTY of what it was
    PTE_SWP_EXCLUSIVE = 0x004   # it was PG_anon_exclusive, and no fork shared it since

# What an anonymous page has while it is mapped, or in the swap cache.
cdef enum:
    ANON_FLAGS = 1 << PG_anon | 1 << PG_anon_exclusive | 1 << PG_swapbacked | 1 << PG_uptodate

# vm_flags, Linux's values (include/linux/mm.h).
cdef enum:
    VM_READ = 0x1
    VM_WRITE = 0x2
    VM_EXEC = 0x4
    VM_SHARED = 0x8
    VM_ACCESS = 0x7
    VM_MAYSHARE = 0x80
    VM_GROWSDOWN = 0x100
    VM_LOCKED = 0x2000
    VM_DONTCOPY = 0x20000
    VM_LOCKONFAULT = 0x80000
    VM_ACCOUNT = 0x100000
    VM_NORESERVE = 0x200000
    VM_WIPEONFORK = 0x2000000
    VM_MAYBE_GUARD = 0x800
    VM_SOFTDIRTY = 0x8000000
    VM_HUGEPAGE = 0x20000000
    VM_NOHUGEPAGE = 0x40000000
    VM_LOCKED_MASK = 0x82000

# What an access wants.
cdef enum:
    FAULT_READ = 0
    FAULT_WRITE = 1
    FAULT_EXEC = 2

# What a fault came to: 0 is served.
cdef enum:
    FAULT_OK = 0
    FAULT_MAPERR = 1            # SEGV_MAPERR
    FAULT_ACCERR = 2            # SEGV_ACCERR
    FAULT_OOM = 3
    FAULT_HOST = 4              # the host refuses the mapping
    FAULT_SIGBUS = 5            # past the end of what is mapped

# VMAs by the pages of what they map, so that those of one page are found: an augmented treap.
# Guarded by mmu.rmap_lock.
cdef struct rmap_node:
    rmap_node* left
    rmap_node* right
    uint64_t last               # page in this subtree that is mapped highest
    uint64_t priority
    vm_area_struct* vma         # whose node it is

# One VMA.  Guarded by its mm.lock.
cdef struct vm_area_struct:
    uint64_t vm_start
    uint64_t vm_end
    uint64_t vm_flags           # VM_*
    uint64_t vm_pgoff           # of vm_start, in pages of its object or, private, as Linux counts
    mm_struct* vm_mm
    vm_area_struct* vm_next     # on its way in or out; the free pointer stands here too
    address_space* vm_object    # what is mapped; NULL: private anonymous memory
    anon_vma* anon_vma          # NULL until its first anonymous page
    uint64_t anon_id            # Linux's vma->anon_vma as an identity: merges ask for it
    int32_t forked              # it came with a fork (its anon_vma_chain is not singular)
    int32_t policy
    uint64_t file               # the opened file that it maps: merges ask for it; 0: none
    rmap_node shared            # among those that map the object
    rmap_node anon              # among those of the anon_vma

# One published VMA: where it lies, so that a search stays in one array.
cdef struct vma_slot:
    uint64_t start
    uint64_t end
    vm_area_struct* vma

# The published VMAs of an address space by address: chunks of slots, and a directory of them.
# A change moves slots of one chunk or two.
cdef enum:
    CHUNK_SLOTS = 128
cdef struct vma_chunk:
    vma_slot slots[128]         # CHUNK_SLOTS
cdef struct vma_dir:
    uint64_t start              # of the first slot
    vma_chunk* chunk
    int64_t count               # slots in use; never 0
cdef struct vma_index:
    vma_dir* dir
    vma_chunk* chunks           # a reservation, touched as used
    vma_chunk* spare            # emptied ones, linked through their first words
    int64_t nr_dir
    int64_t nr_taken            # chunks that were ever in use
    int64_t count               # VMAs

# A place in it.
cdef struct vma_cursor:
    vma_index* index
    int64_t dir
    int64_t slot

# Shared anonymous memory, or a file: its frames by page.  Alive while VMAs or Python refer to it.
# (Linux: an inode and its address_space.)
cdef struct address_space:
    list_head swaplist          # first; of mmu.shmem_swaplist while nr_swapped is not 0; swap_lock
    mutex lock                  # below every mm.lock; guards pages and nr_pages
    int32_t refcount            # atomic
    uint64_t size               # pages; what lies behind it is SIGBUS
    uint64_t charged            # pages of vm_committed_as; grows page by page with noreserve
    int32_t noreserve
    uint64_t nr_pages           # frames
    # Frames, and of shared anonymous memory that is swapped the entries (is_value()).
    radix_node* root
    uint64_t nr_swapped         # of those; lock
    uint64_t id                 # "inode number"
    mmu* mmu
    rmap_node* i_mmap           # root of the treap of VMAs that map it
    # A file's.  The descriptors are Python's; they stay open while VMAs map it.
    int32_t is_file
    int32_t fd                  # to read by
    int32_t write_fd            # to write back by; -1 until it is mapped so that it may be
    int32_t shrunk              # one of the changes cut off its end; lock
    uint64_t i_size             # bytes; lock
    int64_t nr_dirty            # frames; lock
    int64_t stamp[3]            # what fstat() said when its frames were last right; lock
    int64_t stale               # of which change frames are still there; 0: of none; lock
    int64_t changes             # by others, that were noticed; lock
    mutex write_lock            # one write-back at a time; above every mm.lock
    int32_t borrowed            # by reclaim, for a moment; who closes the file waits.  Atomic

cdef enum:
    RADIX_SHIFT = 6
    RADIX_SLOTS = 64
cdef struct radix_node:
    void* slots[64]             # RADIX_SLOTS
    int32_t count
    int32_t shift               # bits of the index below this level

# A range of vmalloc addresses: in use, free, or freed and not yet to be used again.
# (Linux: struct vmap_area and struct vm_struct.)  All are guarded by vmap_space.mm.lock.
cdef enum:
    VM_ALLOC = 0x2              # vmalloc(): its frames are its own
    VM_MAP = 0x4                # vmap()
    VM_UNINITIALIZED = 0x20     # not all is mapped yet; nobody knows its address
    VMAP_RAM = 0x10000          # vm_map_ram(); no guard page
    VMAP_DEFERRED = 0x20000     # vfree() came in atomic context
    VMAP_CALLER = 0x40000       # Python knows who made it
    VMAP_KIND = 0x10006         # one of VM_ALLOC, VM_MAP, VMAP_RAM
cdef struct vmap_area:
    uint64_t start
    uint64_t end                # guard page included
    uint64_t flags              # VM_*, VMAP_*; 0 while free
    uint64_t nr_pages           # mapped
    uint64_t priority           # of the treap
    uint64_t largest            # bytes of the largest range in this subtree
    vmap_area* left
    vmap_area* right
    vmap_area* next             # on the list of those freed lately, or of those to be used

# A machine's vmalloc area.  Its pages are mapped by the kernel half of the page tables, its
# window is that of an address space without a process (Linux: init_mm).
# busy, lazy and free ranges together are [mm.user_start, mm.user_start + mm.length).
cdef struct vmap_space:
    mm_struct* mm               # NULL once closed
    uint64_t mm_id
    vmap_area* busy             # treaps by address
    vmap_area* free
    vmap_area* lazy             # freed since the last purge
    int64_t lazy_pages
    int64_t lazy_max            # a purge is due above it
    int64_t nr_pages            # frames of VM_ALLOC areas
    int64_t nr_purges
    vmap_area* spare            # descriptors, while an area is made
    uint64_t seed

# How long faults of one kind took (fault_cost.pxd).
cdef struct fault_cost:
    int64_t count               # atomic, as the buckets
    uint32_t buckets[6][272]    # NR_FAULT_PARTS, NR_BUCKETS

# A node's pages by how lately they were used (include/linux/mmzone.h); a page's flags say on which
# list it is.  New ones wait in their thread's area first.
cdef enum:
    LRU_INACTIVE_ANON = 0
    LRU_ACTIVE_ANON = 1
    LRU_INACTIVE_FILE = 2
    LRU_ACTIVE_FILE = 3
    LRU_UNEVICTABLE = 4
    NR_LRU_LISTS = 5
cdef struct lruvec:
    spinlock lock
    list_head lists[5]          # NR_LRU_LISTS
    int64_t nr[5]               # pages

# What is behind a swap area: a file, another node's memory, something remote.  Each call returns
# 0 or -errno, and may wait; bytes are a page's.
cdef struct swap_store:
    int (*write)(void* data, uint64_t slot, const void* bytes) noexcept nogil
    int (*read)(void* data, uint64_t slot, void* bytes) noexcept nogil
    void* data

# One swap area (include/linux/swap.h).  Guarded by mmu.swap_lock, but for the store.
cdef struct swap_info_struct:
    int32_t used                # there is one of this type
    int32_t writable            # it takes new pages; not while it is being switched off
    int32_t prio
    uint64_t max                # slots, of which 0 is the header
    uint64_t inuse              # slots
    uint64_t hand               # where the search for a free one goes on
    uint32_t* map               # by slot: entries of page tables, and writers; 0: free
    page** cache                # by slot: the frame that is its copy, with a reference
    swap_store store

# A node's kswapd.
cdef struct kswapd_state:
    int wanted                  # futex: somebody asked for it
    int stop
    int running
    int failures                # turns in a row that freed nothing
    int64_t pages_scanned
    int64_t pages_reclaimed
    uint64_t thread             # pthread_t
    void* owner                 # mmu

# A machine's part in paging: made with its first process.
cdef struct mmu:
    machine* m
    int32_t nr_fds
    int32_t ready
    int fds[64]                 # memfd of each node
    uint64_t fd_phys[64]        # physical address at offset 0 of fds[nid]
    uint64_t zero_pfn           # the shared zero page
    uint64_t kernel_pgd_pfn     # entries 256..511 of every PGD
    int64_t nr_kernel_tables    # frames behind the kernel half, its PGD included
    int64_t vma_budget          # host VMAs that windows may take
    vmap_space* vmap            # the vmalloc area; NULL until it is first used
    int64_t relinking           # changes of VMAs under way, which reverse maps miss meanwhile;
    int64_t relinks             # and those that are over.  Atomic
    mutex rmap_lock             # all reverse maps; below mm.lock and address_space.lock
    uint64_t next_anon_id
    uint64_t next_object_id
    int64_t nr_shmem            # frames of shared anonymous memory
    int64_t nr_file             # frames of files
    int64_t nr_dirty            # of those, changed and not yet written back
    int64_t pgpgin              # KiB read from files, and written to them
    int64_t pgpgout
    int64_t nr_address_spaces
    int64_t nr_anon_mapped      # frames
    int64_t nr_file_mapped
    int64_t nr_mlock            # frames
    # Overcommit (mm/util.c:__vm_enough_memory()).
    int64_t committed           # pages promised; atomic
    int64_t total_pages         # memory and swap: no single request may pass it in mode 0
    int64_t commit_limit        # pages, mode 2
    int64_t admin_reserve       # pages
    int64_t user_reserve        # pages
    int32_t overcommit          # vm.overcommit_memory
    int uffd                    # userfaultfd by which runs are opened; -1: mprotect does it
    int64_t stack_guard_gap     # bytes
    uint64_t mmap_min_addr
    # Folios of more than a page, bit by order: for every VMA, and for those that asked.
    uint32_t thp_always
    uint32_t thp_madvise
    int64_t thp_fault_alloc
    int64_t thp_fault_fallback
    int64_t thp_collapse_alloc
    int64_t thp_collapse_alloc_failed
    int64_t thp_split_pmd
    int64_t numa_pte_updates    # entries that became hints; faults that such brought; at home
    int64_t numa_hint_faults
    int64_t numa_hint_faults_local
    # 2 MiB of zeros, for reads of what is empty; guarded by rmap_lock.  Its frames have a
    # reference each, and no entry is counted.
    int32_t thp_zero_page       # whether it is used (sysfs's use_zero_page)
    uint64_t huge_zero_pfn      # while it has users
    int64_t huge_zero_users     # address spaces that ever mapped it
    int64_t thp_zero_page_alloc
    int64_t thp_zero_page_alloc_failed
    int64_t mthp_alloc[16]      # by order, sysfs's anon_fault_alloc and anon_fault_fallback
    int64_t mthp_fallback[16]
    int32_t runs                # whether faults reserve runs of frames
    # Fault-around, bytes: a power of two of pages (debugfs fault_around_bytes).
    uint64_t fault_around
    int32_t cow_node            # where copies go, COW_* of mempolicy.pxd
    uint64_t costs[64]          # fault_cost*, by the CPU's node; 0: no fault yet.  Atomic
    lruvec lru[64]              # by node
    mutex swap_lock             # below every mm.lock and address_space.lock
    swap_info_struct swap[28]   # MAX_SWAPFILES, by type
    list_head shmem_swaplist    # objects that have swapped pages; swap_lock
    int32_t swap_turn           # of areas of one priority: the type that was used last
    int64_t nr_swap_pages       # free slots of those that take pages; swap_lock
    int64_t total_swap_pages    # slots of all; swap_lock
    int64_t nr_swapcache        # frames; swap_lock
    int32_t swappiness          # vm.swappiness, 0 to 200
    int32_t page_cluster        # log2 of the slots that are read together
    int64_t reclaimers          # threads in reclaim that hold no mm.lock; atomic
    kswapd_state kswapd[64]     # by node

cdef enum: NR_SCRATCH = 64
cdef enum:
    MM_FREE = 0                 # in the pool
    MM_LIVE = 1
    MM_DEAD = 2                 # exited; its window is kept while views of it live

# A process, as far as faults are concerned.  Guarded by its mm.lock.
cdef struct task_struct:
    int32_t pid
    int32_t nid                 # where its software accesses come from; -1: the calling CPU
    mm_struct* mm
    int64_t min_flt
    int64_t maj_flt
    uint64_t nr_served[2]       # faults of the software MMU, and raw ones
    uint32_t nr_timed[2][7]     # ... of each kind that were timed, KIND_* of vm_fault.pxd

# What an address space has while it lives.  Guarded by mm.lock.
cdef enum:
    RLIM_AS = 0
    RLIM_DATA = 1
    RLIM_STACK = 2
    RLIM_MEMLOCK = 3
    NR_RLIMITS = 4
cdef struct mm_core:
    uint64_t pgd_pfn
    int64_t nr_ptes             # page-table pages below the PGD
    int64_t anon_rss            # pages
    int64_t file_rss
    int64_t shmem_rss
    int64_t swap_ents           # entries of pages in swap areas
    int64_t hiwater_rss
    int64_t total_vm            # pages of all VMAs; then of some (mm/mmap.c:vm_stat_account())
    int64_t data_vm
    int64_t exec_vm
    int64_t stack_vm
    int64_t locked_vm
    int64_t hiwater_vm
    int64_t accounted           # pages of VM_ACCOUNT
    uint64_t rlimits[4]         # NR_RLIMITS, bytes
    int32_t may_lock            # CAP_IPC_LOCK
    int32_t may_reserve         # CAP_SYS_ADMIN
    int32_t huge_zero           # it is one of mmu.huge_zero_users
    int32_t thp_disabled        # PR_SET_THP_DISABLE: 0; 1; 3: but where it was asked for
    uint64_t* reserve           # tables set aside for a change that must not fail
    task_struct* owner          # NULL for the vmalloc area's

# The root of a reverse map (include/linux/rmap.h): of the VMAs that may have copies of one
# anonymous page.  Linux keeps a tree of these, one a process; here relatives share one.
# Guarded by mmu.rmap_lock.
cdef struct anon_vma:
    rmap_node* root             # treap; NULL while no VMA stands in it
    int32_t refcount            # VMAs, until their frames are unmapped, and reclaim.  Atomic

# That a VMA may have pages of an anon_vma.
cdef struct anon_vma_chain:
    vm_area_struct* vma
    anon_vma* anon_vma
    anon_vma_chain* same_vma
    void* rb_left
    void* rb_right
    uint64_t rb_subtree_last

# Host addresses that stand for a range of an address space.  Both are 1 GiB aligned.
cdef struct window:
    uint64_t host_base          # host address of user_start
    uint64_t length
    uint64_t user_start

# Pages that the host is not to lose while somebody else's system call uses them.
cdef struct pin_range:
    uint64_t start
    uint64_t end

# An address space and its windows.  Type-stable: a block is reused, never unmapped, so that
# the handler may follow a pointer to one that just died, lock it and look again.  All that may
# go with the process lives in its machine's slabs: `core`, and the VMAs.
cdef struct mm_struct:
    mutex lock                  # sleeps; guards everything below but the windows' places
    int32_t state               # MM_*
    uint64_t id                 # never reused; ascending order is the lock order
    int32_t pid
    mmu* mmu                    # NULL once dead
    mm_core* core               # NULL once dead
    vma_index vmas
    uint64_t generation         # raised by what a fault changes about VMAs
    int32_t grown               # a stack grew since Python looked
    int64_t host_edges          # host VMAs of the windows - nr_windows, by the PTEs' host bits
    int64_t nr_runs             # tables that have one
    uint64_t flush_hand         # where the budget's next flush starts
    int64_t nr_scratch
    int64_t scratch_hand
    uint64_t scratch[64]        # user page addresses where a scratch page stands, 0: free
    # The first one holds what is not asked for elsewhere.  Written when made and by the
    # reaper, with the GIL held and mm.lock.
    window* windows
    int32_t nr_windows
    int32_t exports             # live buffers over any of them; guarded by the GIL
    pin_range* pins             # in no order
    int64_t nr_pins
    mm_struct* pool_next        # free blocks; guarded by the pool's lock
    mm_struct* all_next         # every block ever made; written once

# A forbidden raw access, waiting to be raised.
cdef enum: NR_FAULT_RECORDS = 512
cdef enum:
    RECORD_FREE = 0
    RECORD_BUSY = 1
    RECORD_READY = 2
cdef struct fault_record:
    int state                   # RECORD_*; claimed by the handler, freed by Python
    int32_t code                # FAULT_MAPERR, FAULT_ACCERR, FAULT_OOM, FAULT_HOST
    int32_t access              # FAULT_READ, FAULT_WRITE, FAULT_EXEC
    int32_t pid
    uint64_t address            # the process's own
    uint64_t mm_id
    mm_struct* mm
    int64_t tid                 # host thread id
    uint64_t ident              # its pthread_self(), as Python names threads
    uint64_t seq

cdef inline uint64_t pte_pfn(uint64_t pte) noexcept nogil:
    return (pte & <uint64_t>PTE_PFN_MASK) >> 12

cdef inline unsigned int pte_host(uint64_t pte) noexcept nogil:
    return <unsigned int>((pte >> PTE_HOST_SHIFT) & 3)

cdef inline uint64_t pte_with_host(uint64_t pte, unsigned int host) noexcept nogil:
    return (pte & ~<uint64_t>PTE_HOST_MASK) | (<uint64_t>host << PTE_HOST_SHIFT)

# Whether it stands for a page in a swap area.
cdef inline bint is_swap_pte(uint64_t pte) noexcept nogil:
    return (pte & (PTE_PRESENT | PTE_PROTNONE) == 0 and pte >> PTE_TYPE_SHIFT != 0
            and pte != <uint64_t>PTE_GUARD)

# What an entry maps: a frame that can be touched, or not (PROT_NONE).
cdef inline bint pte_present(uint64_t pte) noexcept nogil:
    return pte & (PTE_PRESENT | PTE_PROTNONE) != 0

# The window that holds addr; there is one for every VMA.
cdef inline window* window_of(const mm_struct* mm, uint64_t addr) noexcept nogil:
    cdef window* w = mm.windows
    cdef window* end = w + mm.nr_windows
    while w != end:
        if addr - w.user_start < w.length:
            return w
        w += 1
    return NULL

cdef inline uint64_t host_address(const mm_struct* mm, uint64_t addr) noexcept nogil:
    cdef window* w = window_of(mm, addr)
    return w.host_base + (addr - w.user_start)

# Whether it is the vmalloc area's, which no process has.
cdef inline bint is_kernel_mm(const mm_struct* mm) noexcept nogil:
    return mm.windows.user_start > <uint64_t>TASK_SIZE

# What its page tables stand for: [mm_low, mm_high).
cdef inline uint64_t mm_low(const mm_struct* mm) noexcept nogil:
    return mm.windows.user_start if is_kernel_mm(mm) else 0

cdef inline uint64_t mm_high(const mm_struct* mm) noexcept nogil:
    return mm.windows.user_start + mm.windows.length if is_kernel_mm(mm) else <uint64_t>TASK_SIZE

# The page of its object, or of private memory, that an address in a VMA stands for.
cdef inline uint64_t linear_page_index(const vm_area_struct* vma, uint64_t addr) noexcept nogil:
    return vma.vm_pgoff + ((addr - vma.vm_start) >> 12)

# A frame that is pinned has so many references more, as in Linux.
cdef enum: GUP_PIN_COUNTING_BIAS = 1024

cdef inline bint is_pinned(const mm_struct* mm, uint64_t start, uint64_t end) noexcept nogil:
    cdef int64_t i
    for i in range(mm.nr_pins):
        if mm.pins[i].start < end and start < mm.pins[i].end:
            return True
    return False

# Whether an entry's page is: who pinned it goes on with it, and a fork copies it for the child.
# A place that is listed may have another page by now.  The references go while the lock is held.
# Mirrors: mm/mm.h:folio_needs_cow_for_dma().
cdef inline bint pinned_page(const mm_struct* mm, uint64_t entry) noexcept nogil:
    return (mm.nr_pins != 0 and not entry & PTE_SPECIAL
            and pfn_to_page(mm.mmu.m, pte_pfn(entry)).counts.c.refcount
            >= GUP_PIN_COUNTING_BIAS)

# Before its resident pages become fewer.  Mirrors: update_hiwater_rss().
cdef inline void update_hiwater_rss(mm_struct* mm) noexcept nogil:
    cdef int64_t now = mm.core.anon_rss + mm.core.file_rss + mm.core.shmem_rss
    if now > mm.core.hiwater_rss:
        mm.core.hiwater_rss = now
