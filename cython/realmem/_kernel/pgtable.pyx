# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
# cython: initializedcheck=False, nonecheck=False, profile=False, linetrace=False
# Page tables.  A table page counts its used entries in page.private, so that an empty one is
# found without reading it; its frames are the buddy allocator's, PG_table, and come and go by
# the quicklists.
from libc.errno cimport ENOMEM
from libc.stdint cimport uint64_t
from libc.string cimport memcpy, memset

from realmem._kernel.lock_order cimport LOCK_RMAP, check_mutex
from realmem._kernel.mm_types cimport (
    PAGE_OFFSET_PGD, PGDIR_SHIFT, PMD_SHIFT, PTE_ACCESSED, PTE_DIRTY, PTE_GLOBAL,
    PTE_HOST_MASK, PTE_KERNEL_TABLE, PTE_NX, PTE_PRESENT, PTE_PROTNONE, PTE_PSE, PTE_RW,
    PTE_SOFT_DIRTY, PTE_SPECIAL, PTE_TABLE, PTRS_PER_TABLE, PUD_SHIFT, TASK_SIZE,
    USER_PGD_PTRS, VMALLOC_PGD, is_kernel_mm, mm_struct, mmu, pte_pfn,
)
from realmem._kernel.page_alloc cimport alloc_pages_node
from realmem._kernel.page_free cimport free_pages
from realmem._kernel.quicklist cimport quicklist_alloc, quicklist_free
from realmem.compiler cimport SEQ_CST, VM_BUG_ON, atomic64_add_return, likely, unlikely
from realmem.types cimport (
    GFP_ACCOUNT, GFP_KERNEL, GFP_NOIO, GFP_ZERO, PAGE_SHIFT, PG_table, PG_zero, page, page_to_pfn,
    pfn_address, pfn_to_page,
)

cdef extern from *:
    uint64_t atomic64_add "__atomic_add_fetch"(uint64_t* p, uint64_t v, int order) noexcept nogil

cdef enum: PMD_SIZE = 1 << PMD_SHIFT


# ---- table frames -----------------------------------------------------------

cdef page* table_alloc(mmu* u) noexcept nogil:
    cdef page* p = quicklist_alloc(u.m, GFP_NOIO | GFP_ACCOUNT)
    if likely(p != NULL):
        p.flags |= <uint64_t>1 << PG_table
        p.private = 0
        p.index = 0
        p.lru.next = NULL       # its run (run.pxd)
    return p


# Free a table whose entries are all zero again.
cdef void table_free(mmu* u, uint64_t pfn) noexcept nogil:
    cdef page* p = pfn_to_page(u.m, pfn)
    VM_BUG_ON(not table_is_empty(table_at(u, pfn)), "a page table is freed with entries in it")
    VM_BUG_ON(p.lru.next != NULL, "a page table is freed with a run")
    p.flags &= ~(<uint64_t>1 << PG_table)
    p.private = 0
    quicklist_free(u.m, p)


# Free one with entries, past the quicklists.
cdef void table_discard(mmu* u, uint64_t pfn) noexcept nogil:
    cdef page* p = pfn_to_page(u.m, pfn)
    p.flags &= ~(<uint64_t>1 << PG_table)
    p.private = 0
    free_pages(u.m, p, 0)


# Tables set aside are linked through their first words, which are zero again when taken.
cdef int tables_reserve_locked(mm_struct* mm, int64_t n) noexcept nogil:
    cdef page* p
    cdef uint64_t* table
    while n > 0:
        p = table_alloc(mm.mmu)
        if p == NULL:
            tables_unreserve_locked(mm)
            return -ENOMEM
        table = table_at(mm.mmu, page_to_pfn(mm.mmu.m, p))
        table[0] = <uint64_t>mm.core.reserve
        mm.core.reserve = table
        n -= 1
    return 0


cdef void tables_unreserve_locked(mm_struct* mm) noexcept nogil:
    cdef page* p = reserve_take(mm)
    while p != NULL:
        table_free(mm.mmu, page_to_pfn(mm.mmu.m, p))
        p = reserve_take(mm)


cdef inline page* reserve_take(mm_struct* mm) noexcept nogil:
    cdef uint64_t* table = mm.core.reserve
    if likely(table == NULL):
        return NULL
    mm.core.reserve = <uint64_t*>table[0]
    table[0] = 0
    return table_of(mm.mmu, table)


cdef bint table_is_empty(const uint64_t* table) noexcept nogil:
    cdef int i
    for i in range(PTRS_PER_TABLE):
        if table[i] != 0:
            return False
    return True


cdef inline uint64_t* table_at(mmu* u, uint64_t pfn) noexcept nogil:
    return <uint64_t*>pfn_address(u.m, pfn)


cdef page* table_of(mmu* u, uint64_t* entry) noexcept nogil:
    return pfn_to_page(u.m, (<uint64_t>entry - u.m.direct_map) >> PAGE_SHIFT)


# ---- the kernel half --------------------------------------------------------

cdef int mmu_init(mmu* u) noexcept nogil:
    cdef page* zero = alloc_pages_node(u.m, -1, GFP_KERNEL | GFP_ZERO, 0)
    cdef page* pgd
    cdef page* vmalloc
    check_mutex(u.m, &u.rmap_lock, LOCK_RMAP, 0)
    u.nr_kernel_tables = 0
    if zero == NULL:
        return -ENOMEM
    zero.flags |= <uint64_t>1 << PG_zero
    u.zero_pfn = page_to_pfn(u.m, zero)
    pgd = table_alloc(u)
    if pgd == NULL:
        zero.flags &= ~(<uint64_t>1 << PG_zero)
        free_pages(u.m, zero, 0)
        return -ENOMEM
    u.kernel_pgd_pfn = page_to_pfn(u.m, pgd)
    u.nr_kernel_tables = 1
    vmalloc = table_alloc(u)
    if vmalloc != NULL:
        u.nr_kernel_tables += 1
        table_at(u, u.kernel_pgd_pfn)[VMALLOC_PGD] = (
            (page_to_pfn(u.m, vmalloc) << PAGE_SHIFT) | PTE_KERNEL_TABLE)
    if vmalloc == NULL or map_direct(u) != 0:
        mmu_exit(u)
        return -ENOMEM
    u.ready = 1
    return 0


# Map [0, max_pfn) at PAGE_OFFSET by 2 MiB entries, holes left out.
cdef int map_direct(mmu* u) noexcept nogil:
    cdef uint64_t phys, end, value
    cdef uint64_t* table
    cdef page* p
    cdef int nid, level
    for nid in range(u.m.nr_nodes):
        phys = u.m.nodes[nid].start_pfn << PAGE_SHIFT
        end = phys + (u.m.nodes[nid].spanned_pages << PAGE_SHIFT)
        phys &= ~((<uint64_t>1 << PMD_SHIFT) - 1)
        while phys < end:
            table = table_at(u, u.kernel_pgd_pfn) + PAGE_OFFSET_PGD + (phys >> PGDIR_SHIFT)
            for level in range(2):
                if table[0] == 0:
                    p = table_alloc(u)
                    if p == NULL:
                        return -ENOMEM
                    u.nr_kernel_tables += 1
                    table[0] = (page_to_pfn(u.m, p) << PAGE_SHIFT) | PTE_KERNEL_TABLE
                table = table_at(u, pte_pfn(table[0]))
                table += (phys >> (PUD_SHIFT if level == 0 else PMD_SHIFT)) & 511
            value = phys | PTE_PRESENT | PTE_RW | PTE_ACCESSED | PTE_DIRTY | PTE_PSE | PTE_GLOBAL
            table[0] = value | <uint64_t>PTE_NX
            phys += <uint64_t>1 << PMD_SHIFT
    return 0


cdef void mmu_exit(mmu* u) noexcept nogil:
    cdef uint64_t* pgd = table_at(u, u.kernel_pgd_pfn)
    cdef uint64_t* pud
    cdef int i, j
    cdef page* zero = pfn_to_page(u.m, u.zero_pfn)
    for i in range(USER_PGD_PTRS, PTRS_PER_TABLE):
        if pgd[i] == 0:
            continue
        pud = table_at(u, pte_pfn(pgd[i]))
        for j in range(PTRS_PER_TABLE):
            if pud[j] != 0:
                table_discard(u, pte_pfn(pud[j]))
        table_discard(u, pte_pfn(pgd[i]))
    table_discard(u, u.kernel_pgd_pfn)
    zero.flags &= ~(<uint64_t>1 << PG_zero)
    free_pages(u.m, zero, 0)
    u.ready = 0
    u.nr_kernel_tables = 0


cdef int pgd_alloc(mm_struct* mm) noexcept nogil:
    cdef page* p = table_alloc(mm.mmu)
    if p == NULL:
        return -ENOMEM
    mm.core.pgd_pfn = page_to_pfn(mm.mmu.m, p)
    memcpy(table_at(mm.mmu, mm.core.pgd_pfn) + USER_PGD_PTRS,
           table_at(mm.mmu, mm.mmu.kernel_pgd_pfn) + USER_PGD_PTRS,
           (PTRS_PER_TABLE - USER_PGD_PTRS) * sizeof(uint64_t))
    return 0


cdef void pgd_free(mm_struct* mm) noexcept nogil:
    memset(table_at(mm.mmu, mm.core.pgd_pfn) + USER_PGD_PTRS, 0,
           (PTRS_PER_TABLE - USER_PGD_PTRS) * sizeof(uint64_t))
    table_free(mm.mmu, mm.core.pgd_pfn)
    mm.core.pgd_pfn = 0


# ---- the user half ----------------------------------------------------------

cdef unsigned int table_index(uint64_t addr, int level) noexcept nogil:
    return <unsigned int>((addr >> (PAGE_SHIFT + 9 * level)) & 511)


cdef uint64_t* pte_offset_locked(mm_struct* mm, uint64_t addr) noexcept nogil:
    cdef mmu* u = mm.mmu
    cdef uint64_t* pmd
    cdef uint64_t entry = table_at(u, mm.core.pgd_pfn)[(addr >> PGDIR_SHIFT) & 511]
    if entry == 0:
        return NULL
    entry = table_at(u, pte_pfn(entry))[(addr >> PUD_SHIFT) & 511]
    if entry == 0:
        return NULL
    pmd = table_at(u, pte_pfn(entry)) + ((addr >> PMD_SHIFT) & 511)
    if pmd[0] == 0:
        return NULL
    return table_below(u, pmd) + ((addr >> PAGE_SHIFT) & 511)


cdef uint64_t* pte_alloc_locked(mm_struct* mm, uint64_t addr) noexcept nogil:
    cdef mmu* u = mm.mmu
    cdef uint64_t* entry = table_at(u, mm.core.pgd_pfn) + ((addr >> PGDIR_SHIFT) & 511)
    cdef page* p
    cdef int level
    cdef uint64_t bits = PTE_KERNEL_TABLE if is_kernel_mm(mm) else PTE_TABLE
    VM_BUG_ON(addr >= <uint64_t>TASK_SIZE and not is_kernel_mm(mm),
              "page table for an address past TASK_SIZE")
    for level in range(2, -1, -1):
        if unlikely(entry[0] == 0):
            p = reserve_take(mm)
            if p == NULL:
                p = table_alloc(u)
            if p == NULL:
                return NULL
            entry[0] = (page_to_pfn(u.m, p) << PAGE_SHIFT) | bits
            table_of(u, entry).private += 1
            mm.core.nr_ptes += 1
        entry = table_below(u, entry) + table_index(addr, level)
    return entry


cdef uint64_t* next_table_locked(mm_struct* mm, uint64_t* addr_ref, uint64_t end) noexcept nogil:
    cdef mmu* u = mm.mmu
    cdef uint64_t addr = addr_ref[0]
    cdef uint64_t* table
    cdef int level, shift
    while addr < end:
        table = table_at(u, mm.core.pgd_pfn)
        for level in range(3, 0, -1):
            shift = PAGE_SHIFT + 9 * level
            if table[(addr >> shift) & 511] == 0:
                addr = ((addr >> shift) + 1) << shift
                break
            table = table_below(u, table + ((addr >> shift) & 511))
        else:
            addr_ref[0] = addr
            return table
    return NULL


cdef uint64_t* pte_table(pte_cursor* c) noexcept nogil:
    cdef uint64_t* table
    pte_sync(c)
    table = next_table_locked(c.mm, &c.addr, c.end)
    if c.mode == PTES_READ or table == NULL or not is_huge_locked(c.mm, c.addr):
        return table
    if c.mode == PTES_SPLIT or c.addr & (PMD_SIZE - 1) or c.end - c.addr < PMD_SIZE:
        split_huge_locked(c.mm, c.addr)
    elif c.mode == PTES_CLEAR:
        unmake_huge_locked(c.mm, c.addr)
    else:
        c.huge = c.addr
    return table


cdef void pte_sync(pte_cursor* c) noexcept nogil:
    if unlikely(c.huge != NO_HUGE):
        sync_huge_locked(c.mm, c.huge)
        c.huge = NO_HUGE


# ---- huge entries -----------------------------------------------------------

# The table that an entry leads to, a huge one included.
cdef inline uint64_t* table_below(mmu* u, uint64_t* entry) noexcept nogil:
    if unlikely(entry[0] & PTE_PSE):
        return table_at(u, pte_pfn(shadow_of(u, entry)[0]))
    return table_at(u, pte_pfn(entry[0]))


cdef inline uint64_t* shadow_of(mmu* u, uint64_t* pmd) noexcept nogil:
    return table_at(u, table_of(u, pmd).index) + ((<uint64_t>pmd >> 3) & 511)


cdef uint64_t* pmd_offset_locked(mm_struct* mm, uint64_t addr) noexcept nogil:
    cdef mmu* u = mm.mmu
    cdef uint64_t entry = table_at(u, mm.core.pgd_pfn)[(addr >> PGDIR_SHIFT) & 511]
    if entry == 0:
        return NULL
    entry = table_at(u, pte_pfn(entry))[(addr >> PUD_SHIFT) & 511]
    if entry == 0:
        return NULL
    return table_at(u, pte_pfn(entry)) + ((addr >> PMD_SHIFT) & 511)


cdef bint is_huge_locked(mm_struct* mm, uint64_t addr) noexcept nogil:
    cdef uint64_t* pmd = pmd_offset_locked(mm, addr)
    return pmd != NULL and pmd[0] & PTE_PSE != 0


cdef int prepare_huge_locked(mm_struct* mm, uint64_t addr) noexcept nogil:
    cdef mmu* u = mm.mmu
    cdef page* table = table_of(u, pmd_offset_locked(mm, addr))
    cdef page* p
    if table.index == 0:
        p = reserve_take(mm)
        if p == NULL:
            p = table_alloc(u)
        if p == NULL:
            return -ENOMEM
        table.index = page_to_pfn(u.m, p)
        mm.core.nr_ptes += 1
    return 0


cdef int make_huge_locked(mm_struct* mm, uint64_t addr, uint64_t value) noexcept nogil:
    cdef uint64_t* pmd = pmd_offset_locked(mm, addr)
    if prepare_huge_locked(mm, addr) != 0:
        return -ENOMEM
    shadow_of(mm.mmu, pmd)[0] = pmd[0]
    pmd[0] = value | PTE_PSE
    count_huge(mm.mmu, value, 1)
    return 0


# Mirrors: mm/rmap.c, of folio->_entire_mapcount.  The zero page's is not counted.
cdef inline void count_huge(mmu* u, uint64_t pmd, uint64_t delta) noexcept nogil:
    if not pmd & PTE_SPECIAL:
        atomic64_add(&pfn_to_page(u.m, pte_pfn(pmd)).private, delta, SEQ_CST)


cdef void split_huge_locked(mm_struct* mm, uint64_t addr) noexcept nogil:
    if is_huge_locked(mm, addr):
        unmake_huge_locked(mm, addr)
        atomic64_add_return(&mm.mmu.thp_split_pmd, 1, SEQ_CST)


cdef void unmake_huge_locked(mm_struct* mm, uint64_t addr) noexcept nogil:
    cdef uint64_t* pmd = pmd_offset_locked(mm, addr)
    cdef uint64_t* shadow = shadow_of(mm.mmu, pmd)
    count_huge(mm.mmu, pmd[0], <uint64_t>-1)
    pmd[0] = shadow[0]
    shadow[0] = 0


cdef void sync_huge_locked(mm_struct* mm, uint64_t addr) noexcept nogil:
    cdef uint64_t* pmd = pmd_offset_locked(mm, addr)
    cdef uint64_t* pte = table_below(mm.mmu, pmd)
    cdef uint64_t fixed = PTE_PRESENT | PTE_PROTNONE | PTE_SPECIAL | <uint64_t>PTE_NX
    cdef uint64_t used = PTE_ACCESSED | PTE_DIRTY | PTE_SOFT_DIRTY
    cdef uint64_t first = pte[0] & ~<uint64_t>(PTE_HOST_MASK | used)
    cdef uint64_t seen = 0
    cdef uint64_t writable = PTE_RW
    cdef int i
    for i in range(PTRS_PER_TABLE):
        if (pte[i] ^ first) & fixed or pte_pfn(pte[i]) != pte_pfn(first) + i:
            split_huge_locked(mm, addr)
            return
        seen |= pte[i] & used
        writable &= pte[i]
    if not writable:
        for i in range(PTRS_PER_TABLE):
            pte[i] &= ~<uint64_t>PTE_RW
    pmd[0] = (first & ~<uint64_t>PTE_RW) | writable | seen | PTE_PSE


# ---- entries ----------------------------------------------------------------

cdef void set_pte_locked(mm_struct* mm, uint64_t* pte, uint64_t value) noexcept nogil:
    if pte[0] == 0:
        table_of(mm.mmu, pte).private += 1
    pte[0] = value


cdef void clear_pte_locked(mm_struct* mm, uint64_t* pte) noexcept nogil:
    if pte[0] != 0:
        table_of(mm.mmu, pte).private -= 1
    pte[0] = 0


cdef void free_pgtables_locked(mm_struct* mm, uint64_t start, uint64_t end) noexcept nogil:
    cdef mmu* u = mm.mmu
    cdef uint64_t* pgd = table_at(u, mm.core.pgd_pfn)
    cdef uint64_t i, last
    if start >= end:
        return
    last = (end - 1) >> PGDIR_SHIFT
    for i in range(start >> PGDIR_SHIFT, last + 1):
        if pgd[i & 511] != 0:
            free_level(mm, pgd + (i & 511), i << PGDIR_SHIFT, 2, start, end)


# Free what is empty below one entry, then the table it points to, if that is empty too.
cdef void free_level(mm_struct* mm, uint64_t* entry, uint64_t base, int level,
                     uint64_t start, uint64_t end) noexcept nogil:
    cdef mmu* u = mm.mmu
    cdef uint64_t pfn
    cdef uint64_t* table
    cdef int shift = PAGE_SHIFT + 9 * level
    cdef uint64_t first, last, i
    if entry[0] & PTE_PSE:
        return
    pfn = pte_pfn(entry[0])
    table = table_at(u, pfn)
    if level > 0:
        first = 0 if start <= base else (start - base) >> shift
        last = 511 if end - base > (<uint64_t>512 << shift) else (end - 1 - base) >> shift
        for i in range(first, last + 1):
            if table[i] != 0:
                free_level(mm, table + i, base + (i << shift), level - 1, start, end)
    # What stands below the kernel's PGD, every process's PGD points to.
    if pfn_to_page(u.m, pfn).private == 0 and not (level == 2 and is_kernel_mm(mm)):
        entry[0] = 0
        table_of(u, entry).private -= 1
        mm.core.nr_ptes -= 1
        if pfn_to_page(u.m, pfn).index != 0:
            table_free(u, pfn_to_page(u.m, pfn).index)
            mm.core.nr_ptes -= 1
        table_free(u, pfn)


# ---- looking ----------------------------------------------------------------

cdef int walk_step(mmu* u, uint64_t addr, int level, uint64_t* next_pfn_ref,
                   uint64_t* address_ret, uint64_t* entry_ret) noexcept nogil:
    cdef unsigned int i = table_index(addr, level)
    cdef uint64_t entry = table_at(u, next_pfn_ref[0])[i]
    address_ret[0] = (next_pfn_ref[0] << PAGE_SHIFT) + i * sizeof(uint64_t)
    entry_ret[0] = entry
    if level == 0 or not entry & PTE_PRESENT or entry & PTE_PSE:
        return -1
    next_pfn_ref[0] = pte_pfn(entry)
    return level - 1
