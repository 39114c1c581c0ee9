# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
# cython: initializedcheck=False, nonecheck=False, profile=False, linetrace=False
# All address spaces of a machine are locked at once, in the order of their ids, so that the
# counts of shared frames add up.
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memset

from realmem._kernel.account cimport vm_stat_account
from realmem._kernel.edges cimport count_edges_locked
from realmem._kernel.host_calls cimport mutex_lock, mutex_unlock
from realmem._kernel.huge_zero cimport is_huge_zero
from realmem._kernel.kernel_caches cimport (
    ANON_VMA, MM_STRUCT, NR_DEDICATED, RADIX_TREE_NODE, SHMEM_INODE, TASK_STRUCT, VM_AREA_STRUCT,
    VMAP_AREA, dedicated_cache, objects_held,
)
from realmem._kernel.mm_finding cimport (
    MM_ABOVE_ENTRY, MM_ABOVE_VMA, MM_COUNTERS, MM_HOST_EDGES, MM_HUGE, MM_HUGE_COUNT,
    MM_LOST_FRAME, MM_LOST_TABLE, MM_MAPCOUNT, MM_MLOCK, MM_NOT_ANON, MM_NR_PTES,
    MM_OBJECTS, MM_OUTSIDE_VMA, MM_REFCOUNT, MM_RMAP, MM_RSS, MM_RUNS,
    MM_SHARED_WRITABLE, MM_SWAP, MM_TABLE_USE, MM_VALID, MM_VMA_OBJECT, MM_VMA_ORDER, mm_finding,
)
from realmem._kernel.mm_types cimport (
    HOST_READ, HOST_WRITE, MAX_SWAPFILES, MM_LIVE, PTE_GUARD, PTE_NX, PTE_PRESENT, PTE_PSE,
    PTE_RW, PTE_SPECIAL, PTRS_PER_TABLE, USER_PGD_PTRS, VM_ACCESS, VM_LOCKED, VM_WRITE,
    address_space, is_swap_pte, linear_page_index, mm_core, mm_struct, mmu, pte_host, pte_pfn,
    pte_present, swap_info_struct, vma_cursor, vma_slot,
)
from realmem._kernel.run cimport run_of
from realmem._kernel.slab_types cimport kmem_cache
from realmem._kernel.swap cimport swap_count
from realmem._kernel.validate_vmap cimport validate_vmap_locked
from realmem._kernel.vmap_area cimport vmap_areas_count_locked
from realmem._kernel.vmaindex cimport vma_find, vma_first, vma_next
from realmem._kernel.zap cimport page_mapcount
from realmem.compiler cimport spin_lock, spin_unlock
from realmem.linux cimport sched_yield
from realmem.types cimport (
    PAGEBLOCK_ORDER, PAGE_ALLOCATED, PAGE_SHIFT, PG_anon, PG_mlocked, PG_swapbacked, PG_table,
    PG_vmalloc, list_head, page, page_mlock_count, page_run, pfn_address, pfn_to_page, zone,
)

cdef enum: SETTLE_TURNS = 10000

cdef struct recount:
    mmu* u
    mm_struct* mm
    uint32_t* counts
    mm_finding* finding
    int64_t anon                # of this address space
    int64_t file
    int64_t shmem
    int64_t swapped
    int64_t all_swapped         # of all
    int64_t tables              # of this address space, its PGD excepted
    int64_t huge                # huge entries, the zero page's excepted
    int64_t locked              # entries of locked VMAs
    int64_t runs                # of this address space
    int64_t open_runs           # of all, those that have frames left


cdef bint validate_mms(mmu* u, mm_struct** mms, int64_t n, uint32_t* counts,
                       mm_finding* finding_ret) noexcept nogil:
    cdef recount r
    cdef int64_t i
    cdef int64_t tables = u.nr_kernel_tables
    cdef int64_t vmap_tables = 0
    cdef int64_t vmap_frames = 0
    cdef mm_struct* kernel = u.vmap.mm if u.vmap != NULL else NULL
    cdef mm_struct* locked = kernel
    r.u = u
    r.counts = counts
    r.finding = finding_ret
    r.huge = 0
    r.all_swapped = 0
    r.locked = 0
    r.open_runs = 0
    finding_ret.what = MM_VALID
    for i in range(n):              # the vmalloc area's at its place among them
        if kernel != NULL and kernel.id < mms[i].id:
            mutex_lock(&kernel.lock)
            kernel = NULL
        mutex_lock(&mms[i].lock)
    if kernel != NULL:
        mutex_lock(&kernel.lock)
    for i in range(n):
        if mms[i].state == MM_LIVE and finding_ret.what == MM_VALID:
            r.mm = mms[i]
            validate_mm_locked(&r)
            tables += r.tables + 1
    if finding_ret.what == MM_VALID and locked != NULL:
        validate_vmap_locked(u.vmap, finding_ret, &vmap_tables, &vmap_frames)
    if finding_ret.what == MM_VALID:
        validate_frames(&r, tables + vmap_tables, vmap_frames)
    if finding_ret.what == MM_VALID:
        validate_objects(&r, mms, n)
    if finding_ret.what == MM_VALID:
        validate_swap(&r)
    if locked != NULL:
        mutex_unlock(&locked.lock)
    for i in range(n - 1, -1, -1):
        mutex_unlock(&mms[i].lock)
    return finding_ret.what == MM_VALID


cdef bint fail(recount* r, int what, uint64_t where, int64_t expected,
               int64_t found) noexcept nogil:
    r.finding.what = what
    r.finding.pid = r.mm.pid
    r.finding.where = where
    r.finding.expected = expected
    r.finding.found = found
    return False


cdef bint validate_mm_locked(recount* r) noexcept nogil:
    cdef mm_struct* mm = r.mm
    cdef uint64_t end = 0
    cdef int64_t n = 0
    cdef vma_cursor cursor
    cdef vma_slot* slot = vma_first(&mm.vmas, 0, &cursor)
    cdef mm_core sums
    memset(&sums, 0, sizeof(mm_core))
    r.anon = 0
    r.file = 0
    r.shmem = 0
    r.swapped = 0
    r.tables = 0
    r.runs = 0
    while slot != NULL:
        if slot.start < end or slot.start >= slot.end:
            return fail(r, MM_VMA_ORDER, slot.start, <int64_t>end, n)
        end = slot.end
        if not describes(slot, mm):
            return fail(r, MM_VMA_OBJECT, slot.start, 0, 0)
        vm_stat_account(&sums, slot.vma.vm_flags,
                        <int64_t>((slot.end - slot.start) >> PAGE_SHIFT))
        n += 1
        slot = vma_next(&cursor)
    if n != mm.vmas.count:
        return fail(r, MM_VMA_ORDER, end, mm.vmas.count, n)
    if (sums.total_vm != mm.core.total_vm or sums.data_vm != mm.core.data_vm
            or sums.stack_vm != mm.core.stack_vm or sums.locked_vm != mm.core.locked_vm
            or sums.exec_vm != mm.core.exec_vm or sums.accounted != mm.core.accounted):
        return fail(r, MM_COUNTERS, 0, sums.total_vm, mm.core.total_vm)
    if not validate_table(r, mm.core.pgd_pfn, 0, 3):
        return False
    if r.anon != mm.core.anon_rss:
        return fail(r, MM_RSS, 0, r.anon, mm.core.anon_rss)
    if r.file != mm.core.file_rss:
        return fail(r, MM_RSS, 0, r.file, mm.core.file_rss)
    if r.shmem != mm.core.shmem_rss:
        return fail(r, MM_RSS, 0, r.shmem, mm.core.shmem_rss)
    if r.swapped != mm.core.swap_ents:
        return fail(r, MM_SWAP, 0, r.swapped, mm.core.swap_ents)
    if r.tables != mm.core.nr_ptes:
        return fail(r, MM_NR_PTES, 0, r.tables, mm.core.nr_ptes)
    if r.runs != mm.nr_runs:
        return fail(r, MM_RUNS, 0, r.runs, mm.nr_runs)
    if count_edges_locked(mm) != mm.host_edges:
        return fail(r, MM_HOST_EDGES, 0, count_edges_locked(mm), mm.host_edges)
    return True


cdef inline bint describes(const vma_slot* slot, const mm_struct* mm) noexcept nogil:
    return (slot.vma.vm_start == slot.start and slot.vma.vm_end == slot.end
            and slot.vma.vm_mm == mm)


# The slab caches of what address spaces are made of hold just that: nobody makes or frees any
# while all are locked.  A cache that others use too holds that at least.
cdef bint validate_objects(recount* r, mm_struct** mms, int64_t n) noexcept nogil:
    cdef int64_t expected[NR_DEDICATED]     # -1: nothing else counts them
    cdef int64_t found
    cdef kmem_cache* s
    cdef int64_t i
    cdef int which
    memset(expected, 0, sizeof(expected))
    for i in range(n):
        if mms[i].core != NULL and mms[i].mmu == r.u:
            expected[TASK_STRUCT] += 1
            expected[MM_STRUCT] += 1
            expected[VM_AREA_STRUCT] += mms[i].vmas.count
    expected[RADIX_TREE_NODE] = expected[ANON_VMA] = -1
    if r.u.vmap != NULL:
        expected[MM_STRUCT] += 1
        expected[VMAP_AREA] += vmap_areas_count_locked(r.u.vmap)
    for which in range(NR_DEDICATED):
        if expected[which] < 0:
            continue
        s = dedicated_cache(r.u.m, which)
        found = objects_held(s)
        if which == SHMEM_INODE:
            found = settled_objects(r.u, s, &expected[which])
        if found < expected[which] or (found > expected[which] and s.refcount == 1):
            return frame_fail(r, MM_OBJECTS, which, expected[which], found)
    return True


# Objects of shared memory and files come and go without an mm.lock: it takes a moment each.
cdef int64_t settled_objects(mmu* u, kmem_cache* s, int64_t* expected_ret) noexcept nogil:
    cdef int64_t found = objects_held(s)
    cdef int turn = 0
    expected_ret[0] = u.nr_address_spaces
    while found != expected_ret[0] and s.refcount == 1 and turn < SETTLE_TURNS:
        sched_yield()
        turn += 1
        found = objects_held(s)
        expected_ret[0] = u.nr_address_spaces
    return found


# One table at a level (3 PGD ... 0 PTEs) whose first entry stands for `base`.
cdef bint validate_table(recount* r, uint64_t pfn, uint64_t base, int level) noexcept nogil:
    cdef uint64_t* table = <uint64_t*>pfn_address(r.u.m, pfn)
    cdef int64_t used = 0
    cdef int i
    cdef uint64_t addr, below
    cdef const page_run* run = run_of(r.u.m, table)
    if run != NULL:
        r.runs += 1
        r.open_runs += run.unused > 0
        if level != 0 or not is_run_of_its_own(r, run):
            return fail(r, MM_RUNS, base, 0, <int64_t>run.pfn)
    if level == 1 and pfn_to_page(r.u.m, pfn).index != 0:
        r.tables += 1               # the shadow
    for i in range(USER_PGD_PTRS if level == 3 else PTRS_PER_TABLE):
        if table[i] == 0:
            continue
        used += 1
        addr = base + (<uint64_t>i << (PAGE_SHIFT + 9 * level))
        if level > 0:
            r.tables += 1
            below = pte_pfn(table[i])
            if table[i] & PTE_PSE:
                below = validate_huge(r, table + i)
                if below == 0:
                    return fail(r, MM_HUGE, addr, 0, <int64_t>table[i])
            if not validate_table(r, below, addr, level - 1):
                return False
        elif not validate_pte(r, table[i], addr):
            return False
    if <int64_t>pfn_to_page(r.u.m, pfn).private != used:
        return fail(r, MM_TABLE_USE, pfn, used, <int64_t>pfn_to_page(r.u.m, pfn).private)
    return True


# The pageblock of a run that has frames left knows no other.
cdef inline bint is_run_of_its_own(recount* r, const page_run* run) noexcept nogil:
    return run.unused == 0 or (
        run.z.run_at[(run.pfn >> PAGEBLOCK_ORDER) - run.z.pageblock_start] == run)


# Whether the table that a huge entry keeps says what it does; the table's frame, or 0.
cdef uint64_t validate_huge(recount* r, uint64_t* pmd) noexcept nogil:
    cdef uint64_t rights = PTE_PRESENT | PTE_RW | <uint64_t>PTE_NX
    cdef page* p = pfn_to_page(r.u.m, (<uint64_t>pmd - r.u.m.direct_map) >> PAGE_SHIFT)
    cdef uint64_t* table
    cdef uint64_t pfn
    cdef int i
    if p.index == 0:
        return 0
    table = <uint64_t*>pfn_address(r.u.m, p.index)
    pfn = pte_pfn(table[(<uint64_t>pmd >> 3) & 511])
    if pfn == 0:
        return 0
    table = <uint64_t*>pfn_address(r.u.m, pfn)
    for i in range(PTRS_PER_TABLE):
        if pte_pfn(table[i]) != pte_pfn(pmd[0]) + i or (table[i] ^ pmd[0]) & rights:
            return 0
    r.huge += pmd[0] & PTE_SPECIAL == 0
    return pfn


cdef bint validate_pte(recount* r, uint64_t entry, uint64_t addr) noexcept nogil:
    cdef vma_slot* slot = vma_find(&r.mm.vmas, addr)
    cdef page* p
    cdef uint64_t flags
    if slot == NULL or addr < slot.start:
        return fail(r, MM_OUTSIDE_VMA, addr, 0, <int64_t>entry)
    if entry == <uint64_t>PTE_GUARD:
        return True
    if is_swap_pte(entry):
        r.swapped += 1
        r.all_swapped += 1
        if swap_count(r.u, entry) == 0:
            return fail(r, MM_SWAP, addr, 1, 0)
        return True
    flags = slot.vma.vm_flags
    if (not pte_present(entry) or (entry & PTE_RW and not flags & VM_WRITE)
            or (entry & PTE_PRESENT and not flags & VM_ACCESS)):
        return fail(r, MM_ABOVE_VMA, addr, <int64_t>flags, <int64_t>entry)
    if pte_host(entry) == HOST_WRITE and not entry & PTE_RW or (
            pte_host(entry) >= HOST_READ and not entry & PTE_PRESENT):
        return fail(r, MM_ABOVE_ENTRY, addr, 0, <int64_t>entry)
    if entry & PTE_SPECIAL:
        if entry & PTE_RW or (pte_pfn(entry) != r.u.zero_pfn
                              and not is_huge_zero(r.u, pte_pfn(entry))):
            return fail(r, MM_NOT_ANON, addr, <int64_t>r.u.zero_pfn, <int64_t>entry)
        return True
    p = pfn_to_page(r.u.m, pte_pfn(entry))
    r.counts[pte_pfn(entry)] += 1
    r.locked += flags & VM_LOCKED != 0
    if p.kind.h.state != PAGE_ALLOCATED:
        return fail(r, MM_NOT_ANON, addr, 0, <int64_t>entry)
    if p.index != linear_page_index(slot.vma, addr):
        return fail(r, MM_RMAP, addr, <int64_t>linear_page_index(slot.vma, addr),
                    <int64_t>p.index)
    if p.flags & (1 << PG_anon):
        r.anon += 1
        if p.mapping == NULL or p.mapping != slot.vma.anon_vma:
            return fail(r, MM_RMAP, addr, 0, <int64_t>entry)
        if entry & PTE_RW and page_mapcount(p) != 1:
            return fail(r, MM_SHARED_WRITABLE, addr, 1, page_mapcount(p))
        return True
    if p.flags & (1 << PG_swapbacked):
        r.shmem += 1
    else:
        r.file += 1
    if p.mapping == NULL or p.mapping != slot.vma.vm_object:
        return fail(r, MM_NOT_ANON, addr, 0, <int64_t>entry)
    return True


# Slots count the entries of them; who is writing one meanwhile counts for more.
cdef bint validate_swap(recount* r) noexcept nogil:
    cdef int64_t counted = 0, used = 0, cached = 0
    cdef swap_info_struct* si
    cdef uint64_t slot
    cdef int type
    cdef list_head* object
    mutex_lock(&r.u.swap_lock)
    object = r.u.shmem_swaplist.next
    while object != &r.u.shmem_swaplist:
        r.all_swapped += <int64_t>(<address_space*>object).nr_swapped
        object = object.next
    for type in range(MAX_SWAPFILES):
        si = &r.u.swap[type]
        if not si.used:
            continue
        for slot in range(1, si.max):
            counted += si.map[slot]
            used += si.map[slot] != 0
            cached += si.cache[slot] != NULL
        used -= <int64_t>si.inuse
    cached -= r.u.nr_swapcache
    mutex_unlock(&r.u.swap_lock)
    if counted < r.all_swapped:
        return frame_fail(r, MM_SWAP, 0, r.all_swapped, counted)
    if used != 0 or cached != 0:
        return frame_fail(r, MM_SWAP, 0, 0, used + cached)
    return True


# What the frames themselves say, against what the walks found.
cdef bint validate_frames(recount* r, int64_t tables, int64_t vmalloc) noexcept nogil:
    cdef int64_t found_tables = 0
    cdef int64_t found_vmalloc = 0
    cdef int64_t found_huge = 0
    cdef int64_t found_locked = 0
    cdef int64_t frames_locked = 0
    cdef int64_t open_runs = 0
    cdef int nid
    cdef uint64_t pfn, end, mapped
    cdef page* p
    r.mm = NULL
    for nid in range(r.u.m.nr_zones):
        open_runs += count_runs(r.u.m.zones + nid)
    if open_runs > r.open_runs:     # others may have taken some back since they were counted
        return frame_fail(r, MM_RUNS, 0, r.open_runs, open_runs)
    for nid in range(r.u.m.nr_nodes):
        pfn = r.u.m.nodes[nid].start_pfn
        end = pfn + r.u.m.nodes[nid].spanned_pages
        while pfn < end:
            p = pfn_to_page(r.u.m, pfn)
            mapped = r.counts[pfn]
            if p.kind.h.state == PAGE_ALLOCATED and p.flags & (1 << PG_table):
                found_tables += 1
            found_vmalloc += p.flags >> PG_vmalloc & 1
            found_locked += page_mlock_count(p.flags)
            frames_locked += p.flags >> PG_mlocked & 1
            if p.kind.h.state == PAGE_ALLOCATED and p.flags & (1 << PG_anon):
                found_huge += <int64_t>p.private
            if p.kind.h.state == PAGE_ALLOCATED and (mapped or p.flags & (1 << PG_anon)):
                if page_mapcount(p) != <int64_t>mapped:
                    return frame_fail(r, MM_MAPCOUNT, pfn, mapped, page_mapcount(p))
                if p.counts.c.refcount < <int64_t>mapped:
                    return frame_fail(r, MM_REFCOUNT, pfn, mapped, p.counts.c.refcount)
            pfn += 1
    if found_tables != tables:
        return frame_fail(r, MM_LOST_TABLE, 0, tables, found_tables)
    if found_huge != r.huge:
        return frame_fail(r, MM_HUGE_COUNT, 0, r.huge, found_huge)
    if found_vmalloc != vmalloc:
        return frame_fail(r, MM_LOST_FRAME, 0, vmalloc, found_vmalloc)
    if found_locked != r.locked:
        return frame_fail(r, MM_MLOCK, 0, r.locked, found_locked)
    if frames_locked != r.u.nr_mlock:
        return frame_fail(r, MM_MLOCK, 0, frames_locked, r.u.nr_mlock)
    return True


cdef int64_t count_runs(zone* z) noexcept nogil:
    cdef const page_run* run
    cdef int64_t n = 0
    spin_lock(&z.lock)
    run = z.runs
    while run != NULL:
        n += 1
        run = run.next
    spin_unlock(&z.lock)
    return n


cdef bint frame_fail(recount* r, int what, uint64_t pfn, int64_t expected,
                     int64_t found) noexcept nogil:
    r.finding.what = what
    r.finding.pid = 0
    r.finding.where = pfn
    r.finding.expected = expected
    r.finding.found = found
    return False
