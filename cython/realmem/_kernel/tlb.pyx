# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
# cython: initializedcheck=False, nonecheck=False, profile=False, linetrace=False
# What the host has mapped in a window is a cache of the page tables.  Two bits of each PTE
# say what the host has there, so that a range can be flushed, write-protected and counted
# without asking the host.
#
# When all windows together pass the budget, whole tables (2 MiB)
# are flushed, round robin.  When the host itself refuses (ENOMEM: its limit is reached by
# somebody else), VMAs kept for that are given up first (spare.pyx), because at the limit even a
# flush by mmap is refused.
from libc.errno cimport ENOMEM
from libc.stdint cimport int64_t, uint64_t
from posix.mman cimport PROT_NONE, PROT_READ, PROT_WRITE

from realmem._kernel.edges cimport (
    add_edges, count_edges_locked, edges_around, edges_in, edges_in_cleared,
)
from realmem._kernel.host_calls cimport (
    host_clear, host_map, host_map_private, host_map_zero, host_protect, mutex_trylock,
    mutex_unlock,
)
from realmem._kernel.mm_types cimport (
    HOST_NOACC, HOST_NONE, HOST_READ, HOST_WRITE, MM_LIVE, NR_SCRATCH, PMD_SHIFT, PTE_PRESENT,
    PTE_RW, host_address, is_kernel_mm, is_pinned, mm_high, mm_low, mm_struct, mmu, pinned_page,
    pte_host, pte_pfn, pte_present, pte_with_host, window,
)
from realmem._kernel.percpu cimport count_vm_event
from realmem._kernel.pgtable cimport next_table_locked, pte_offset_locked, set_pte_locked
from realmem._kernel.run cimport run_of
from realmem._kernel.run_host cimport (
    chunk_is_due, forget_mapped, forget_page, is_run_page, map_chunk_locked, maps_any,
)
from realmem._kernel.run_uffd cimport (
    discard_registered, is_registered, open_registered, protect_registered, refresh_registered,
)
from realmem._kernel.spare cimport spare_drop, spare_take
from realmem._kernel.window cimport windows
from realmem.compiler cimport BUG, SEQ_CST, atomic64_add_return, likely, peek64, unlikely
from realmem.linux cimport sched_yield
from realmem.types cimport (
    HOST_MAP_FILL, HOST_MAP_FLUSH, HOST_MPROTECT, PAGE_SHIFT, PAGE_SIZE, page_run, page_zone,
    pfn_to_page,
)

cdef enum:
    OWN_EDGES_WORTH = 64        # fewer edges than these are not worth a flush
    FILL_TRIES = 64
    GIB = 1 << 30
    SCRATCH = 1                 # marks a scratch page's address, which may be 0


# ---- fills ------------------------------------------------------------------

cdef int tlb_install_locked(mm_struct* mm, uint64_t addr, uint64_t* pte, uint64_t value,
                            unsigned int host) noexcept nogil:
    cdef uint64_t page_addr = addr & ~<uint64_t>(PAGE_SIZE - 1)
    cdef page_run* run = run_of(mm.mmu.m, pte)
    cdef int64_t before, total
    cdef unsigned int current
    cdef int rc = 0
    if unlikely(host != HOST_NONE and peek64(&windows.host_vmas) >= mm.mmu.vma_budget):
        relieve(mm)
    if (run != NULL and host != HOST_NONE and mm.nr_scratch == 0
            and chunk_is_due(mm.mmu, run, pte, value)):
        map_chunk_locked(mm, page_addr, run)
    total = mm.host_edges
    before = edges_around(mm, page_addr, pte)
    current = pte_host(pte[0])
    if current != HOST_NONE and pte_pfn(pte[0]) != pte_pfn(value):
        # Another frame is mapped here: the new map replaces it, or it must go.
        if host == HOST_NONE:
            clear_range(mm, page_addr, page_addr + PAGE_SIZE)
            forget_page(mm.mmu.m, pte)
        current = HOST_NONE
    elif run != NULL and current == HOST_NONE and is_run_page(run, pte, value):
        current = HOST_NOACC
    set_pte_locked(mm, pte, pte_with_host(value, current))
    if current < host:
        rc = host_install(mm, page_addr, pte, host)
    if likely(mm.host_edges == total):
        add_edges(mm, edges_around(mm, page_addr, pte) - before)
    else:                           # the window was flushed on the way
        add_edges(mm, count_edges_locked(mm) - mm.host_edges)
    return rc


# With userfaultfd a run is mapped as a whole, before pages of it are opened.
cdef inline void map_run_if_due(mm_struct* mm, uint64_t addr, const uint64_t* pte) noexcept nogil:
    cdef page_run* run = run_of(mm.mmu.m, pte)
    if (run != NULL and mm.mmu.uffd >= 0 and mm.nr_scratch == 0
            and chunk_is_due(mm.mmu, run, pte, pte[0])):
        map_chunk_locked(mm, addr, run)


cdef void tlb_refresh_locked(mm_struct* mm, uint64_t addr, uint64_t* pte) noexcept nogil:
    cdef uint64_t entry = pte[0]
    cdef const page_run* run = run_of(mm.mmu.m, pte)
    cdef unsigned int host = pte_host(entry)
    cdef uint64_t page_addr = addr & ~<uint64_t>(PAGE_SIZE - 1)
    # What is no run's is an ordinary mapping, which the host fills itself; who pinned it must not
    # see it go.
    if mm.mmu.uffd < 0 or host < HOST_READ or run == NULL or not is_run_page(run, pte, entry):
        return
    if is_registered(mm.mmu.m, pte) and refresh_registered(
            mm.mmu, host_address(mm, page_addr), host) == 0:
        return
    tlb_flush_locked(mm, page_addr, page_addr + PAGE_SIZE)
    tlb_install_locked(mm, addr, pte, entry, host)


# Make the host map the PTE's frame with the access of `host`; sets the host bits.
cdef int host_install(mm_struct* mm, uint64_t addr, uint64_t* pte,
                      unsigned int host) noexcept nogil:
    cdef mmu* u = mm.mmu
    cdef uint64_t at = host_address(mm, addr)
    cdef uint64_t pfn = pte_pfn(pte[0])
    cdef int prot = PROT_READ | PROT_WRITE if host == HOST_WRITE else PROT_READ
    cdef int nid = page_zone(u.m, pfn_to_page(u.m, pfn)).nid
    cdef int rc = 0
    cdef int tries = FILL_TRIES
    while tries > 0:
        tries -= 1
        if is_registered(u.m, pte):
            rc = open_registered(u, at, PAGE_SIZE, pte_host(pte[0]), host)
        elif pte_host(pte[0]) != HOST_NONE:
            rc = host_protect(at, PAGE_SIZE, prot)
            count_vm_event(u.m, HOST_MPROTECT, 1)
        else:
            rc = host_map(at, PAGE_SIZE, prot, u.fds[nid], (pfn << PAGE_SHIFT) - u.fd_phys[nid])
            count_vm_event(u.m, HOST_MAP_FILL, 1)
            if rc == 0:
                forget_page(u.m, pte)
        if likely(rc == 0):
            pte[0] = pte_with_host(pte[0], host)
            if unlikely(mm.nr_scratch != 0):
                scratch_forget(mm, addr, addr + PAGE_SIZE)
            return 0
        if rc != -ENOMEM:
            if not is_registered(u.m, pte):
                break
            # By an ordinary mapping, then.  (Before Linux 6.4 nothing is filled for reading only.)
            forget_page(u.m, pte)
            pte[0] = pte_with_host(pte[0], HOST_NONE)
            continue
        make_room(mm)
    # What stood here before must not outlive the PTE that allowed it.
    clear_range(mm, addr, addr + PAGE_SIZE)
    forget_page(u.m, pte)
    pte[0] = pte_with_host(pte[0], HOST_NONE)
    return rc


# The host's limit is reached: whoever comes now needs a host VMA or two.
cdef void make_room(mm_struct* mm) noexcept nogil:
    spare_drop()
    tlb_flush_window_locked(mm)
    spare_take()
    sched_yield()


cdef void tlb_fill_locked(mm_struct* mm, uint64_t start, uint64_t end) noexcept nogil:
    cdef uint64_t addr = start
    cdef uint64_t stop
    while addr < end:
        stop = min(end, (addr | ((1 << PMD_SHIFT) - 1)) + 1)
        if unlikely(peek64(&windows.host_vmas) >= mm.mmu.vma_budget):
            relieve(mm)
        if not fill_table(mm, addr, stop):
            break
        addr = stop


# Fill what one page table maps of [start, end).
# Returns: whether there was room for all.
cdef bint fill_table(mm_struct* mm, uint64_t start, uint64_t end) noexcept nogil:
    cdef mmu* u = mm.mmu
    cdef uint64_t* pte = pte_offset_locked(mm, start)
    cdef uint64_t left = (end - start) >> PAGE_SHIFT
    cdef uint64_t addr = start
    cdef uint64_t n, i
    cdef unsigned int host
    cdef int64_t before, room
    cdef int rc
    if pte == NULL:
        return True
    map_run_if_due(mm, start, pte)
    before = edges_in(mm, start, end)
    room = max(mm.mmu.vma_budget - peek64(&windows.host_vmas), 1)   # for the fault at hand
    while left > 0:
        n = fillable_run(u, pte, left)
        if n == 0:
            n = 1
        else:
            host = HOST_WRITE if pte[0] & PTE_RW else HOST_READ
            if is_registered(u.m, pte):
                rc = open_registered(u, host_address(mm, addr), n << PAGE_SHIFT, HOST_NONE, host)
            else:
                room -= 1
                if room < 0:
                    break
                rc = map_run(mm, addr, pte, n, host)
            if rc != 0:
                break
            for i in range(n):
                pte[i] = pte_with_host(pte[i], host)
        pte += n
        addr += n << PAGE_SHIFT
        left -= n
    scratch_forget(mm, start, addr)
    add_edges(mm, edges_in(mm, start, end) - before)
    return left == 0


# Map n frames that follow each other: 0 or -errno.
cdef int map_run(mm_struct* mm, uint64_t addr, const uint64_t* pte, uint64_t n,
                 unsigned int host) noexcept nogil:
    cdef mmu* u = mm.mmu
    cdef uint64_t pfn = pte_pfn(pte[0])
    cdef int nid = page_zone(u.m, pfn_to_page(u.m, pfn)).nid
    cdef int rc = host_map(host_address(mm, addr), n << PAGE_SHIFT,
                           PROT_READ | PROT_WRITE if host == HOST_WRITE else PROT_READ,
                           u.fds[nid], (pfn << PAGE_SHIFT) - u.fd_phys[nid])
    if rc == 0:
        count_vm_event(u.m, HOST_MAP_FILL, 1)
        forget_mapped(u.m, pte, n)
    return rc


# How many entries from `pte` on map frames that one host mapping can hold, or that are opened by
# userfaultfd; 0 for one that is empty, or that the host has already.
cdef uint64_t fillable_run(mmu* u, const uint64_t* pte, uint64_t most) noexcept nogil:
    cdef uint64_t n = 0
    cdef uint64_t first = pte[0]
    cdef bint registered = is_registered(u.m, pte)
    cdef int nid
    if not first & PTE_PRESENT or pte_host(first) != HOST_NONE:
        return 0
    nid = page_zone(u.m, pfn_to_page(u.m, pte_pfn(first))).nid
    while (n < most and pte[n] & PTE_PRESENT and pte_host(pte[n]) == HOST_NONE
           and pte_pfn(pte[n]) == pte_pfn(first) + n and (pte[n] ^ first) & PTE_RW == 0
           and page_zone(u.m, pfn_to_page(u.m, pte_pfn(pte[n]))).nid == nid
           and is_registered(u.m, pte + n) == registered):
        n += 1
    return n


# ---- protecting and flushing ------------------------------------------------

cdef void tlb_protect_locked(mm_struct* mm, uint64_t start, uint64_t end, unsigned int most,
                             bint spare_pinned) noexcept nogil:
    cdef uint64_t addr = start
    cdef uint64_t at, first = ~<uint64_t>0, last = 0  # of the run; no first: none
    cdef uint64_t* table
    cdef uint64_t* pte
    cdef unsigned int host
    cdef bint by_uffd = False
    cdef int rc = 0
    cdef int64_t before, total
    keep_budget(mm)
    before = edges_in(mm, start, end)
    total = mm.host_edges
    while addr < end and rc == 0:
        at = addr
        table = next_table_locked(mm, &at, end)
        if table == NULL or at != addr or at & (GIB - 1) == 0:
            rc = protect_run(mm, &first, last, most, by_uffd)
            if table == NULL or rc != 0:
                break
        addr = at
        while addr < end:
            pte = table + ((addr >> PAGE_SHIFT) & 511)
            host = pte_host(pte[0])
            if unlikely(spare_pinned) and is_pinned(mm, addr, addr + PAGE_SIZE) and (
                    pinned_page(mm, pte[0])):
                host = HOST_NONE
            if host > most:
                if first != ~<uint64_t>0 and by_uffd != is_registered(mm.mmu.m, pte):
                    rc = protect_run(mm, &first, last, most, by_uffd)
                    if rc != 0:
                        break
                if first == ~<uint64_t>0:
                    first = addr
                    by_uffd = is_registered(mm.mmu.m, pte)
                last = addr
                pte[0] = pte_with_host(pte[0], most)
            elif first != ~<uint64_t>0 and (
                    host != most or by_uffd != is_registered(mm.mmu.m, pte)):
                rc = protect_run(mm, &first, last, most, by_uffd)
                if rc != 0:
                    break
            addr += PAGE_SIZE
            if addr & ((1 << PMD_SHIFT) - 1) == 0:
                break
    if rc == 0:
        rc = protect_run(mm, &first, last, most, by_uffd)
    if rc != 0:                     # no room to split host VMAs: take everything away
        tlb_flush_window_locked(mm)
    elif mm.host_edges == total:
        add_edges(mm, edges_in(mm, start, end) - before)


cdef int protect_run(mm_struct* mm, uint64_t* first_ref, uint64_t last, unsigned int most,
                     bint by_uffd) noexcept nogil:
    cdef uint64_t first = first_ref[0]
    if first == ~<uint64_t>0:
        return 0
    first_ref[0] = ~<uint64_t>0
    if by_uffd:
        return protect_registered(mm.mmu, host_address(mm, first), last + PAGE_SIZE - first, most)
    count_vm_event(mm.mmu.m, HOST_MPROTECT, 1)
    return host_protect(host_address(mm, first), last + PAGE_SIZE - first,
                        PROT_READ if most == HOST_READ else PROT_NONE)


cdef void tlb_flush_locked(mm_struct* mm, uint64_t start, uint64_t end) noexcept nogil:
    keep_budget(mm)
    flush_range(mm, start, end)


cdef void flush_range(mm_struct* mm, uint64_t start, uint64_t end) noexcept nogil:
    cdef window* w = mm.windows
    cdef window* last = w + mm.nr_windows
    while w != last:
        flush_part(mm, max(start, w.user_start), min(end, w.user_start + w.length))
        w += 1


# Both ends lie in one window.
cdef void flush_part(mm_struct* mm, uint64_t start, uint64_t end) noexcept nogil:
    cdef int64_t before
    if start >= end:
        return
    if not set_host_bits(mm, start, end, HOST_NONE, True) and not scratch_in(mm, start, end):
        return
    if discard_part(mm, start, end):
        return
    before = edges_in(mm, start, end)
    if clear_range(mm, start, end) == 0:
        set_host_bits(mm, start, end, HOST_NONE, False)
        add_edges(mm, edges_in_cleared(mm, start, end) - before)
    # Otherwise all windows were flushed, and counted.


# A part of what one registered run's table covers: the run is likely to be used on.
cdef bint discard_part(mm_struct* mm, uint64_t start, uint64_t end) noexcept nogil:
    cdef uint64_t n = (end - start) >> PAGE_SHIFT
    cdef uint64_t* pte
    cdef uint64_t i
    if mm.mmu == NULL or mm.mmu.uffd < 0 or n >= 512 or (start ^ (end - 1)) >> PMD_SHIFT != 0 or (
            scratch_in(mm, start, end)):
        return False
    pte = pte_offset_locked(mm, start)
    if pte == NULL or not discard_registered(mm, start, pte, n):
        return False
    for i in range(n):
        pte[i] = pte_with_host(pte[i], HOST_NONE)
    count_flush(mm)
    return True


cdef void tlb_flush_window_locked(mm_struct* mm) noexcept nogil:
    cdef const window* w
    cdef bint cleared
    cdef bint protected = False
    cdef int i
    if mm.nr_windows == 0:
        return
    for i in range(mm.nr_windows):
        w = mm.windows + i
        cleared = clear_window(mm, w)
        # mprotect over whole VMAs splits none, so that the limit cannot refuse it.
        if not cleared and host_protect(w.host_base, w.length, PROT_NONE) != 0:
            BUG("the host refuses to take access away from a window")
        # Of a window that was cleared nothing is left to be opened.
        set_host_bits(mm, w.user_start, w.user_start + w.length,
                      HOST_NONE if cleared else HOST_NOACC, False)
        protected |= not cleared
    scratch_forget(mm, mm_low(mm), mm_high(mm))
    count_flush(mm)
    if not protected:
        add_edges(mm, -mm.host_edges)
    elif mm.mmu != NULL:         # a dead one keeps the count it had until it is reaped
        add_edges(mm, count_edges_locked(mm) - mm.host_edges)


cdef inline bint clear_window(mm_struct* mm, const window* w) noexcept nogil:
    if host_clear(w.host_base, w.length) == 0:
        return True
    spare_drop()
    return host_clear(w.host_base, w.length) == 0


# Take what the host has mapped in [start, end) away.
# Returns: 0, or -ENOMEM when that took the whole window.
cdef int clear_range(mm_struct* mm, uint64_t start, uint64_t end) noexcept nogil:
    cdef int rc = host_clear(host_address(mm, start), end - start)
    if unlikely(rc != 0):
        spare_drop()
        rc = host_clear(host_address(mm, start), end - start)
        if rc != 0:
            tlb_flush_window_locked(mm)
            return -ENOMEM
        spare_take()
    scratch_forget(mm, start, end)
    count_flush(mm)
    return 0


cdef inline void count_flush(mm_struct* mm) noexcept nogil:
    if mm.mmu != NULL:
        count_vm_event(mm.mmu.m, HOST_MAP_FLUSH, 1)


# Give every page of [start, end) that the host has mapped the bits `host`.
# Returns: whether there was one; with `probe`, that is all it does.
cdef bint set_host_bits(mm_struct* mm, uint64_t start, uint64_t end, unsigned int host,
                        bint probe) noexcept nogil:
    cdef uint64_t addr = start
    cdef uint64_t* table
    cdef uint64_t* pte
    cdef uint64_t n
    cdef bint found = False
    if mm.mmu == NULL:
        return False
    while True:
        table = next_table_locked(mm, &addr, end)
        if table == NULL:
            return found
        pte = table + ((addr >> PAGE_SHIFT) & 511)
        n = min((end - addr) >> PAGE_SHIFT, <uint64_t>(table + 512 - pte))
        if run_of(mm.mmu.m, table) != NULL and maps_any(mm.mmu.m, pte, n):
            found = True
            if probe:
                return True
            if host == HOST_NONE:
                forget_mapped(mm.mmu.m, pte, n)
            else:                           # mprotect took the whole VMA's access
                run_of(mm.mmu.m, table).registered = 0
        while addr < end:
            pte = table + ((addr >> PAGE_SHIFT) & 511)
            if pte_host(pte[0]) != HOST_NONE:
                if probe:
                    return True
                found = True
                pte[0] = pte_with_host(pte[0], host)
            addr += PAGE_SIZE
            if addr & ((1 << PMD_SHIFT) - 1) == 0:
                break


# ---- the budget -------------------------------------------------------------

# To protect or flush a part of a host VMA splits it: calls that do so one after another must not
# pass the budget either.
cdef inline void keep_budget(mm_struct* mm) noexcept nogil:
    if mm.mmu != NULL and unlikely(peek64(&windows.host_vmas) >= mm.mmu.vma_budget):
        relieve(mm)


# Flush tables, round robin, until an eighth of the budget is free: this window's, or, where
# it has few host VMAs itself, those of other windows of the machine that are not locked.
# The vmalloc area's go last: what a system call is given of it must not fault.
cdef void relieve(mm_struct* mm) noexcept nogil:
    cdef int64_t target = mm.mmu.vma_budget - (mm.mmu.vma_budget >> 3)
    cdef uint64_t end = mm_high(mm)
    cdef uint64_t addr = max(mm.flush_hand, mm_low(mm))
    cdef bint wrapped = False
    if mm.host_edges < OWN_EDGES_WORTH or is_kernel_mm(mm):
        relieve_others(mm, target, False)
    if mm.host_edges < OWN_EDGES_WORTH:
        relieve_others(mm, target, True)
        return
    while peek64(&windows.host_vmas) > target and mm.host_edges > 0:
        if next_table_locked(mm, &addr, end) == NULL:
            if wrapped:
                break
            wrapped = True
            addr = mm_low(mm)
            continue
        addr &= ~<uint64_t>((1 << PMD_SHIFT) - 1)
        if not is_pinned(mm, addr, addr + (1 << PMD_SHIFT)):
            flush_range(mm, addr, addr + (1 << PMD_SHIFT))
        addr += 1 << PMD_SHIFT
    mm.flush_hand = addr


cdef void relieve_others(mm_struct* mm, int64_t target, bint kernel) noexcept nogil:
    cdef mm_struct* other = windows.all
    while other != NULL and peek64(&windows.host_vmas) > target:
        if (other != mm and peek64(&other.host_edges) >= OWN_EDGES_WORTH
                and mutex_trylock(&other.lock)):
            if (other.state == MM_LIVE and other.mmu == mm.mmu and other.nr_pins == 0
                    and is_kernel_mm(other) == kernel):
                tlb_flush_window_locked(other)
            mutex_unlock(&other.lock)
        other = other.all_next


# ---- scratch pages ----------------------------------------------------------

cdef int scratch_map_locked(mm_struct* mm, uint64_t addr, bint show_frame) noexcept nogil:
    cdef uint64_t page_addr = addr & ~<uint64_t>(PAGE_SIZE - 1)
    cdef uint64_t* pte = pte_offset_locked(mm, page_addr) if mm.state == MM_LIVE else NULL
    cdef uint64_t at = host_address(mm, page_addr)
    cdef uint64_t pfn, first
    cdef int64_t before, total
    cdef int nid, rc
    cdef int tries = FILL_TRIES
    cdef mmu* u = mm.mmu
    if scratch_in(mm, page_addr, page_addr + PAGE_SIZE):
        return 0                # another thread's fault put it there
    if mm.nr_scratch == NR_SCRATCH:
        first = mm.scratch[mm.scratch_hand] & ~<uint64_t>SCRATCH
        clear_range(mm, first, first + PAGE_SIZE)
    total = mm.host_edges
    before = edges_around(mm, page_addr, pte) if pte != NULL else 0
    while True:
        tries -= 1
        if show_frame and pte != NULL and pte_present(pte[0]):
            # The page may be read: show its bytes, in a copy that the host makes at the store.
            pfn = pte_pfn(pte[0])
            nid = page_zone(u.m, pfn_to_page(u.m, pfn)).nid
            rc = host_map_private(at, PAGE_SIZE, u.fds[nid], (pfn << PAGE_SHIFT) - u.fd_phys[nid])
        else:
            rc = host_map_zero(at, PAGE_SIZE)
        if likely(rc != -ENOMEM) or tries == 0:
            break
        make_room(mm)
    if rc == 0 and pte != NULL:
        pte[0] = pte_with_host(pte[0], HOST_NONE)
        forget_page(u.m, pte)
        if likely(mm.host_edges == total):
            add_edges(mm, edges_around(mm, page_addr, pte) - before)
        else:                       # the window was flushed on the way
            add_edges(mm, count_edges_locked(mm) - mm.host_edges)
    if rc == 0:
        while mm.scratch[mm.scratch_hand] != 0:
            mm.scratch_hand = (mm.scratch_hand + 1) & (NR_SCRATCH - 1)
        mm.scratch[mm.scratch_hand] = page_addr | SCRATCH
        mm.scratch_hand = (mm.scratch_hand + 1) & (NR_SCRATCH - 1)
        mm.nr_scratch += 1
        atomic64_add_return(&windows.host_vmas, 2, SEQ_CST)
    return rc


cdef void scratch_flush_locked(mm_struct* mm) noexcept nogil:
    cdef uint64_t first
    cdef int i
    for i in range(NR_SCRATCH):
        if mm.scratch[i] != 0:
            first = mm.scratch[i] & ~<uint64_t>SCRATCH
            clear_range(mm, first, first + PAGE_SIZE)


cdef bint scratch_in(mm_struct* mm, uint64_t start, uint64_t end) noexcept nogil:
    cdef int i
    if mm.nr_scratch != 0:
        for i in range(NR_SCRATCH):
            if mm.scratch[i] - start < end - start and mm.scratch[i] != 0:
                return True
    return False


cdef void scratch_forget(mm_struct* mm, uint64_t start, uint64_t end) noexcept nogil:
    cdef int i
    if mm.nr_scratch == 0:
        return
    for i in range(NR_SCRATCH):
        if mm.scratch[i] != 0 and mm.scratch[i] - start < end - start:
            mm.scratch[i] = 0
            mm.nr_scratch -= 1
            atomic64_add_return(&windows.host_vmas, -2, SEQ_CST)
