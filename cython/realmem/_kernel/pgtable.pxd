# Four-level page tables in real frames, in the x86-64 format.
# Everything here is signal-safe.
from libc.stdint cimport int64_t, uint64_t

from realmem._kernel.mm_types cimport mm_struct, mmu
from realmem.types cimport PAGE_SHIFT, PAGE_SIZE, page

# Make the machine's shared zero page and the kernel half that every PGD points to: the
# direct map at PAGE_OFFSET in 2 MiB entries and an empty table for the vmalloc area.
# Returns: 0, or -ENOMEM with nothing kept.
cdef int mmu_init(mmu* u) noexcept nogil
# Preconditions: no address space of u is left.
cdef void mmu_exit(mmu* u) noexcept nogil

# A PGD whose upper half is the machine's; one frame.
# Mirrors: arch/x86/mm/pgtable.c:pgd_alloc() => pgd_ctor().
# Returns: 0, or -ENOMEM.
cdef int pgd_alloc(mm_struct* mm) noexcept nogil
cdef void pgd_free(mm_struct* mm) noexcept nogil

# The PTE of addr, or NULL where a level is missing.
# Preconditions: mm.lock held; addr < TASK_SIZE, or in the vmalloc area if mm is its own.
cdef uint64_t* pte_offset_locked(mm_struct* mm, uint64_t addr) noexcept nogil

# The entry of addr for that table, or NULL where it has none.
cdef uint64_t* pmd_offset_locked(mm_struct* mm, uint64_t addr) noexcept nogil

# The PTE, making what is missing (on the calling CPU's node).
# Mirrors: mm/memory.c:__pud_alloc(), __pmd_alloc(), __pte_alloc().
# Returns: NULL when no frame is found; levels made so far stay, empty, until free_pgtables.
cdef uint64_t* pte_alloc_locked(mm_struct* mm, uint64_t addr) noexcept nogil

# The first page table that covers [addr_ref[0], end), with addr_ref[0] moved up to what it
# covers; NULL when there is none.  For loops over what is present.
cdef uint64_t* next_table_locked(mm_struct* mm, uint64_t* addr_ref, uint64_t end) noexcept nogil

# A PMD entry that maps 2 MiB keeps the table with the 512 entries that it stands for, set aside
# in a shadow of its PMD table (compare pgtable_trans_huge_deposit()): all else goes on with
# that, so that splitting one is a store and cannot fail.
# The first frame of one counts in page.private how many there are, of all address spaces.
cdef bint is_huge_locked(mm_struct* mm, uint64_t addr) noexcept nogil
# Preconditions: the table of addr is there; its entries map 2 MiB in a row with equal rights.
# Returns: 0; -ENOMEM, and it stays a table.
cdef int make_huge_locked(mm_struct* mm, uint64_t addr, uint64_t value) noexcept nogil
# Have room for the table that one is to keep, so that making it cannot fail.
# Returns: 0; -ENOMEM.
cdef int prepare_huge_locked(mm_struct* mm, uint64_t addr) noexcept nogil
# Make what may be one a table again.  Mirrors: mm/huge_memory.c:__split_huge_pmd().
cdef void split_huge_locked(mm_struct* mm, uint64_t addr) noexcept nogil
# The same for entries that will all go; no event.
cdef void unmake_huge_locked(mm_struct* mm, uint64_t addr) noexcept nogil
# All 512 entries of a huge one were changed alike: it follows them.  Where only some could become
# writable, none does; where they differ in another right it is split.
cdef void sync_huge_locked(mm_struct* mm, uint64_t addr) noexcept nogil

# The used entries of a range, one after the other: pte_first(), then pte_next() until NULL.
# Tables may not be freed meanwhile.  What is to be done to the entries says how huge ones are met:
cdef enum:
    PTES_READ = 0               # nothing: they stay
    PTES_SPLIT = 1              # each may become another: they are tables from now on
    PTES_ALIKE = 2              # the same to all: those that lie in the range as a whole stay huge
    PTES_CLEAR = 3              # all go: those that lie in it as a whole are split without a trace
cdef struct pte_cursor:
    mm_struct* mm
    uint64_t* table             # NULL at its end
    uint64_t addr               # what the entry stands for
    uint64_t end
    uint64_t huge               # where the huge entry begins whose entries change; NO_HUGE: none
    int mode

cdef extern from *:
    const uint64_t NO_HUGE "UINT64_MAX"

cdef inline uint64_t* pte_first(pte_cursor* c, mm_struct* mm, uint64_t start, uint64_t end,
                                int mode) noexcept nogil:
    c.mm = mm
    c.addr = start
    c.end = end
    c.mode = mode
    c.huge = NO_HUGE
    c.table = NULL
    return pte_here(c)

# The table that the cursor comes to; NULL at the end.
cdef uint64_t* pte_table(pte_cursor* c) noexcept nogil
cdef void pte_sync(pte_cursor* c) noexcept nogil

cdef inline uint64_t* pte_next(pte_cursor* c) noexcept nogil:
    c.addr += PAGE_SIZE
    if (c.addr >> PAGE_SHIFT) & 511 == 0:
        c.table = NULL
    return pte_here(c)

cdef inline uint64_t* pte_here(pte_cursor* c) noexcept nogil:
    cdef uint64_t* pte
    while c.addr < c.end:
        if c.table == NULL:
            c.table = pte_table(c)
            if c.table == NULL:
                return NULL
        pte = c.table + ((c.addr >> PAGE_SHIFT) & 511)
        if pte[0] != 0:
            return pte
        c.addr += PAGE_SIZE
        if (c.addr >> PAGE_SHIFT) & 511 == 0:
            c.table = NULL
    pte_sync(c)
    return NULL

# Go on behind the 2 MiB that the cursor is in.
cdef inline uint64_t* pte_skip_table(pte_cursor* c) noexcept nogil:
    c.addr = ((c.addr >> 21) + 1) << 21
    c.table = NULL
    return pte_here(c)

# Set an empty entry, clear a used one: they keep the table's count of used entries.
cdef void set_pte_locked(mm_struct* mm, uint64_t* pte, uint64_t value) noexcept nogil
cdef void clear_pte_locked(mm_struct* mm, uint64_t* pte) noexcept nogil

# Free the tables below the PGD that hold nothing, in what covers [start, end).
# Mirrors: mm/memory.c:free_pgtables() (there by neighbouring VMAs, here by use).
cdef void free_pgtables_locked(mm_struct* mm, uint64_t start, uint64_t end) noexcept nogil

# The entry of a table at a level: 3 PGD, 2 PUD, 1 PMD, 0 PTE.
cdef unsigned int table_index(uint64_t addr, int level) noexcept nogil

# One level of the walk of addr into address_ret (physical) and entry_ret.
# Returns: the level below to go on with (table frame in next_pfn_ref[0]), or -1 at the end.
cdef int walk_step(mmu* u, uint64_t addr, int level, uint64_t* next_pfn_ref,
                   uint64_t* address_ret, uint64_t* entry_ret) noexcept nogil

# The table page that holds an entry.
cdef page* table_of(mmu* u, uint64_t* entry) noexcept nogil

# Set n page tables aside, so that pte_alloc_locked() can't fail for the want of so many: 0 or
# -ENOMEM with none set aside.  And give back what is left of them.
cdef int tables_reserve_locked(mm_struct* mm, int64_t n) noexcept nogil
cdef void tables_unreserve_locked(mm_struct* mm) noexcept nogil
