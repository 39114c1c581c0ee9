# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
# cython: initializedcheck=False, nonecheck=False, profile=False, linetrace=False
# An area is made in steps, as in Linux: addresses under the lock, frames without it, entries
# and host mappings under it again.  Between them the machine may be closed: vmap_exit() takes
# what is mapped, and who comes after it gives back what is not.
from libc.errno cimport ENOMEM
from libc.stdint cimport int64_t, uint32_t, uint64_t

from realmem._kernel.host_calls cimport mutex_lock, mutex_unlock
from realmem._kernel.kernel_caches cimport VMAP_AREA, dedicated_cache
from realmem._kernel.mm_types cimport (
    MM_DEAD, MM_LIVE, PMD_SHIFT, PTE_ACCESSED, PTE_DIRTY, PTE_GLOBAL, PTE_NX, PTE_PRESENT,
    PTE_RW, PTE_SPECIAL, VM_ALLOC, VM_UNINITIALIZED, VMALLOC_START, VMAP_DEFERRED, VMAP_KIND,
    VMAP_RAM, mm_struct, mmu, pte_pfn, vmap_area, vmap_space,
)
from realmem._kernel.page_alloc cimport alloc_pages_bulk, alloc_pages_node, split_page
from realmem._kernel.page_free cimport free_pages_bulk, get_page, put_page
from realmem._kernel.pgtable cimport (
    clear_pte_locked, free_pgtables_locked, next_table_locked, pte_alloc_locked,
    pte_offset_locked, set_pte_locked,
)
from realmem._kernel.slab_cache cimport shrink_cache
from realmem._kernel.tlb cimport tlb_fill_locked, tlb_flush_locked, tlb_flush_window_locked
from realmem._kernel.vmap_area cimport (
    alloc_vmap_area_locked, find_vmap_area_locked, free_vmap_area_locked,
    next_vmap_area_locked, purge_vmap_areas_locked, vmap_areas_exit, vmap_areas_init,
)
from realmem._kernel.window cimport mm_core_put, mm_create_kernel
from realmem.compiler cimport fls
from realmem.types cimport (
    GFP_COMP, GFP_DIRECT_RECLAIM, GFP_KSWAPD_RECLAIM, GFP_NOFAIL, GFP_NOMEMALLOC, GFP_NOWARN,
    MAX_NUMNODES, MAX_PAGE_ORDER, PAGE_ALLOCATED, PAGE_SHIFT, PAGE_SIZE, PG_tail, PG_vmalloc,
    machine, page, page_to_pfn, page_zone, pfn_to_page,
)

cdef enum:
    CHUNK = 512                 # frames taken and mapped at a time
    LAZY_BYTES = 32 << 20       # freed addresses that wait for a purge, by the CPUs' logarithm


# ---- life -------------------------------------------------------------------

cdef int vmap_init(vmap_space* s, mmu* u, uint64_t* length_ref) noexcept nogil:
    cdef int error = 0
    cdef int nid
    cdef int cpus = 0
    s.mm = mm_create_kernel(u, VMALLOC_START, length_ref, &error)
    if s.mm == NULL:
        return VMAP_NO_PAGES if error == ENOMEM else VMAP_NO_SPACE
    s.mm_id = s.mm.id
    s.nr_pages = 0
    if vmap_areas_init(s, VMALLOC_START, length_ref[0]) != 0:
        vmap_exit(s)
        return VMAP_NO_PAGES
    for nid in range(u.m.nr_nodes):
        cpus += u.m.nodes[nid].nr_cpus
    # Compare lazy_max_pages().
    s.lazy_max = <int64_t>(fls(max(cpus, 1)) + 1) * (LAZY_BYTES >> PAGE_SHIFT)
    u.vmap = s
    u.m.vmap = s
    return VMAP_OK


cdef void vmap_exit(vmap_space* s) noexcept nogil:
    cdef mm_struct* mm = s.mm
    cdef vmap_area* area
    cdef uint64_t end
    if mm == NULL or not lock_live(s):
        return
    end = mm.windows.user_start + mm.windows.length
    tlb_flush_window_locked(mm)
    area = next_vmap_area_locked(s, mm.windows.user_start)
    while area != NULL:
        drop_pages_locked(s, area)
        area = next_vmap_area_locked(s, area.end)
    free_pgtables_locked(mm, mm.windows.user_start, end)
    vmap_areas_exit(s)
    mm_core_put(mm)
    mm.mmu.vmap = NULL
    mm.mmu.m.vmap = NULL
    mm.state = MM_DEAD
    mm.mmu = NULL
    mutex_unlock(&mm.lock)


cdef inline bint lock_live(vmap_space* s) noexcept nogil:
    cdef mm_struct* mm = s.mm
    mutex_lock(&mm.lock)
    if mm.id == s.mm_id and mm.state == MM_LIVE:
        return True
    mutex_unlock(&mm.lock)
    return False


# ---- making areas -----------------------------------------------------------

cdef int vmalloc_range(vmap_space* s, uint64_t size, uint64_t align, uint32_t gfp, int nid,
                       uint64_t flags, uint64_t* addr_ret) noexcept nogil:
    cdef uint64_t n = (size + PAGE_SIZE - 1) >> PAGE_SHIFT
    cdef uint64_t done = 0
    cdef uint64_t got, mapped
    cdef uint64_t pfns[CHUNK]
    cdef vmap_area* area
    cdef machine* m
    cdef int rc = 0
    if not lock_live(s):
        return VMAP_CLOSED
    m = s.mm.mmu.m
    area = alloc_vmap_area_locked(s, (n + 1) << PAGE_SHIFT, align,
                                  VM_ALLOC | VM_UNINITIALIZED | flags, &rc)
    mutex_unlock(&s.mm.lock)
    if area == NULL:
        return VMAP_NO_PAGES if rc == -ENOMEM else VMAP_NO_SPACE
    while done < n:
        got = take_frames(m, nid, gfp, min(n - done, <uint64_t>CHUNK), pfns)
        if not lock_live(s):
            free_pages_bulk(m, pfns, got)
            return VMAP_CLOSED
        mapped = map_frames_locked(s, area, area.start + (done << PAGE_SHIFT), pfns, got, True)
        done += mapped
        if mapped < got or got == 0:
            end_area_locked(s, area)
            mutex_unlock(&s.mm.lock)
            free_pages_bulk(m, pfns + mapped, got - mapped)
            return VMAP_NO_PAGES
        if done == n:
            area.flags &= ~<uint64_t>VM_UNINITIALIZED
        mutex_unlock(&s.mm.lock)
    addr_ret[0] = area.start
    return VMAP_OK


# Up to n frames: blocks first, since each costs one host mapping, then what there is, sorted.
# Returns: how many; fewer than n only when one more could not be had.
cdef uint64_t take_frames(machine* m, int nid, uint32_t gfp, uint64_t n,
                          uint64_t* pfns_ret) noexcept nogil:
    cdef uint32_t light = gfp & ~<uint32_t>(GFP_COMP | GFP_DIRECT_RECLAIM | GFP_KSWAPD_RECLAIM
                                            | GFP_NOFAIL) | GFP_NOWARN | GFP_NOMEMALLOC
    cdef unsigned int most = MAX_PAGE_ORDER
    cdef unsigned int order
    cdef uint64_t got = 0
    cdef uint64_t i
    cdef page* p
    while n - got >= 2 and most > 0:
        order = min(fls(n - got), most)
        p = alloc_pages_node(m, nid, light, order)
        if p == NULL:
            most = order - 1
            continue
        split_page(m, p, order)
        for i in range(<uint64_t>1 << order):
            pfns_ret[got + i] = page_to_pfn(m, p) + i
        got += <uint64_t>1 << order
    if got < n:
        i = got
        got += alloc_pages_bulk(m, nid, gfp & ~<uint32_t>GFP_COMP, n - got, pfns_ret + got)
        sort(pfns_ret + i, got - i)
    return got


# Shell's sort: in place, without recursion, and fast on what is nearly in order already.
cdef void sort(uint64_t* a, uint64_t n) noexcept nogil:
    cdef uint64_t gap = 1
    cdef uint64_t i, j, value
    while gap < n / 3:
        gap = 3 * gap + 1
    while gap > 0:
        for i in range(gap, n):
            value = a[i]
            j = i
            while j >= gap and a[j - gap] > value:
                a[j] = a[j - gap]
                j -= gap
            a[j] = value
        gap /= 3


cdef int vmap_frames(vmap_space* s, const uint64_t* pfns, uint64_t n, uint64_t kind,
                     bint writable, uint64_t* addr_ret) noexcept nogil:
    cdef uint64_t size = (n + (0 if kind == VMAP_RAM else 1)) << PAGE_SHIFT
    cdef vmap_area* area
    cdef int rc = VMAP_OK
    if not lock_live(s):
        return VMAP_CLOSED
    area = alloc_vmap_area_locked(s, size, PAGE_SIZE, kind, &rc)
    if area == NULL:
        rc = VMAP_NO_PAGES if rc == -ENOMEM else VMAP_NO_SPACE
    elif map_frames_locked(s, area, area.start, pfns, n, writable) < n:
        end_area_locked(s, area)
        rc = VMAP_NO_PAGES
    else:
        addr_ret[0] = area.start
    mutex_unlock(&s.mm.lock)
    return rc


# Enter frames into the page tables from addr on, and map them.  They are the area's from then
# on, or it holds references to them.
# Returns: how many; fewer than n when a page table could not be had.
cdef uint64_t map_frames_locked(vmap_space* s, vmap_area* area, uint64_t addr,
                                const uint64_t* pfns, uint64_t n, bint writable) noexcept nogil:
    cdef machine* m = s.mm.mmu.m
    cdef uint64_t bits = PTE_PRESENT | PTE_ACCESSED | PTE_GLOBAL | <uint64_t>PTE_NX
    cdef uint64_t* pte = NULL
    cdef uint64_t entry
    cdef uint64_t i = 0
    cdef page* p
    if writable:
        bits |= PTE_RW | PTE_DIRTY
    while i < n:
        if pte == NULL or (addr + (i << PAGE_SHIFT)) & ((1 << PMD_SHIFT) - 1) == 0:
            pte = pte_alloc_locked(s.mm, addr + (i << PAGE_SHIFT))
            if pte == NULL:
                break
        p = pfn_to_page(m, pfns[i])
        entry = (pfns[i] << PAGE_SHIFT) | bits
        if area.flags & VM_ALLOC:
            p.flags |= <uint64_t>1 << PG_vmalloc
        elif not hold(p):
            entry |= PTE_SPECIAL
        set_pte_locked(s.mm, pte, entry)
        pte += 1
        i += 1
    area.nr_pages += i
    if area.flags & VM_ALLOC:
        s.nr_pages += <int64_t>i
    tlb_fill_locked(s.mm, addr, addr + (i << PAGE_SHIFT))
    return i


# Take a reference to the block that a frame lies in.
# Returns: whether there is one to take: the frames behind the first of a block that is not
# compound have none of their own, and go when the block is freed.
cdef bint hold(page* p) noexcept nogil:
    if p.flags >> PG_tail & 1:
        p = <page*>p.index
    elif p.kind.h.state != PAGE_ALLOCATED:
        return False
    get_page(p)
    return True


# ---- ending areas -----------------------------------------------------------

# The area that begins at addr, if it is what the caller says.
cdef vmap_area* checked_locked(vmap_space* s, uint64_t addr, uint64_t kind, uint64_t pages,
                               int* rc_ret) noexcept nogil:
    cdef vmap_area* area = find_vmap_area_locked(s, addr)
    cdef const vmap_area* lazy = s.lazy
    rc_ret[0] = VMAP_OK
    if addr & (PAGE_SIZE - 1):
        rc_ret[0] = VMAP_UNALIGNED
    elif area == NULL:
        rc_ret[0] = VMAP_NOWHERE
        while lazy != NULL:
            if lazy.start <= addr < lazy.end:
                rc_ret[0] = VMAP_FREED
            lazy = lazy.next
    elif area.flags & VM_UNINITIALIZED:
        rc_ret[0] = VMAP_NOWHERE
    elif area.flags & VMAP_DEFERRED:
        rc_ret[0] = VMAP_FREED
    elif area.start != addr or (pages and area.nr_pages != pages):
        rc_ret[0] = VMAP_INTERIOR
    elif area.flags & VMAP_KIND != kind:
        rc_ret[0] = VMAP_OTHER_KIND
    return area if rc_ret[0] == VMAP_OK else NULL


cdef int vmap_free(vmap_space* s, uint64_t addr, uint64_t kind, uint64_t pages) noexcept nogil:
    cdef vmap_area* area
    cdef int rc = VMAP_OK
    if not lock_live(s):
        return VMAP_CLOSED
    area = find_vmap_area_locked(s, addr)
    if not kind & VMAP_DEFERRED:
        area = checked_locked(s, addr, kind, pages, &rc)
    if area != NULL:
        end_area_locked(s, area)
    mutex_unlock(&s.mm.lock)
    return rc


cdef int vmap_defer(vmap_space* s, uint64_t addr) noexcept nogil:
    cdef vmap_area* area
    cdef int rc = VMAP_OK
    if not lock_live(s):
        return VMAP_CLOSED
    area = checked_locked(s, addr, VM_ALLOC, 0, &rc)
    if area != NULL:
        area.flags |= VMAP_DEFERRED
    mutex_unlock(&s.mm.lock)
    return rc


cdef void end_area_locked(vmap_space* s, vmap_area* area) noexcept nogil:
    tlb_flush_locked(s.mm, area.start, area.end)
    drop_pages_locked(s, area)
    free_pgtables_locked(s.mm, area.start, area.end)
    free_vmap_area_locked(s, area)


# Clear the entries of an area and give its frames up.
# Preconditions: nothing of it is mapped by the host.
cdef void drop_pages_locked(vmap_space* s, vmap_area* area) noexcept nogil:
    cdef machine* m = s.mm.mmu.m
    cdef uint64_t addr = area.start
    cdef uint64_t pfns[CHUNK]
    cdef uint64_t n = 0
    cdef uint64_t entry
    cdef uint64_t* table
    cdef page* p
    while True:
        table = next_table_locked(s.mm, &addr, area.end)
        if table == NULL:
            break
        while addr < area.end:
            entry = table[(addr >> PAGE_SHIFT) & 511]
            if entry != 0:
                clear_pte_locked(s.mm, table + ((addr >> PAGE_SHIFT) & 511))
                p = pfn_to_page(m, pte_pfn(entry))
                if area.flags & VM_ALLOC:
                    p.flags &= ~(<uint64_t>1 << PG_vmalloc)
                    pfns[n] = pte_pfn(entry)
                    n += 1
                elif not entry & PTE_SPECIAL:
                    put_page(m, <page*>p.index if p.flags >> PG_tail & 1 else p)
            addr += PAGE_SIZE
            if addr & ((1 << PMD_SHIFT) - 1) == 0:
                break
        free_pages_bulk(m, pfns, n)
        n = 0
    if area.flags & VM_ALLOC:
        s.nr_pages -= <int64_t>area.nr_pages
    area.nr_pages = 0


cdef void vmap_purge(vmap_space* s) noexcept nogil:
    if lock_live(s):
        purge_vmap_areas_locked(s)
        if s.busy == NULL:
            shrink_cache(dedicated_cache(s.mm.mmu.m, VMAP_AREA))
        mutex_unlock(&s.mm.lock)


# ---- looking ----------------------------------------------------------------

cdef int64_t vmap_to_pfn(vmap_space* s, uint64_t addr) noexcept nogil:
    cdef uint64_t* pte
    cdef int64_t pfn = -1
    if not lock_live(s):
        return -1
    if addr - s.mm.windows.user_start < s.mm.windows.length:
        pte = pte_offset_locked(s.mm, addr)
        if pte != NULL and pte[0] & PTE_PRESENT:
            pfn = <int64_t>pte_pfn(pte[0])
    mutex_unlock(&s.mm.lock)
    return pfn


cdef bint vmap_covers(vmap_space* s, uint64_t addr, uint64_t size) noexcept nogil:
    cdef vmap_area* area
    cdef uint64_t bytes
    cdef bint inside = False
    if not lock_live(s):
        return False
    area = find_vmap_area_locked(s, addr)
    if area != NULL and not area.flags & (VM_UNINITIALIZED | VMAP_DEFERRED):
        bytes = area.nr_pages << PAGE_SHIFT
        inside = addr - area.start < bytes and size <= bytes - (addr - area.start)
    mutex_unlock(&s.mm.lock)
    return inside


cdef bint vmap_next_info(vmap_space* s, uint64_t addr, vmap_info* ret) noexcept nogil:
    cdef vmap_area* area
    cdef machine* m
    cdef uint64_t at
    cdef uint64_t* pte
    cdef int nid
    if not lock_live(s):
        return False
    m = s.mm.mmu.m
    area = next_vmap_area_locked(s, addr)
    if area != NULL:
        describe(area, ret)
        for nid in range(MAX_NUMNODES):
            ret.nodes[nid] = 0
        at = area.start
        while area.flags & VM_ALLOC and at < area.end:
            pte = next_table_locked(s.mm, &at, area.end)
            if pte == NULL:
                break
            while at < area.end:
                if pte[(at >> PAGE_SHIFT) & 511] & PTE_PRESENT:
                    nid = page_zone(m, pfn_to_page(m, pte_pfn(pte[(at >> PAGE_SHIFT) & 511]))).nid
                    ret.nodes[nid] += 1
                at += PAGE_SIZE
                if at & ((1 << PMD_SHIFT) - 1) == 0:
                    break
    mutex_unlock(&s.mm.lock)
    return area != NULL


cdef bint vmap_lazy_info(vmap_space* s, int64_t i, vmap_info* ret) noexcept nogil:
    cdef const vmap_area* area
    if not lock_live(s):
        return False
    area = s.lazy
    while area != NULL and i > 0:
        area = area.next
        i -= 1
    if area != NULL:
        describe(area, ret)
    mutex_unlock(&s.mm.lock)
    return area != NULL


cdef inline void describe(const vmap_area* area, vmap_info* ret) noexcept nogil:
    ret.start = area.start
    ret.end = area.end
    ret.flags = area.flags
    ret.nr_pages = area.nr_pages
