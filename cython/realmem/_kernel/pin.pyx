# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
# cython: initializedcheck=False, nonecheck=False, profile=False, linetrace=False
from libc.errno cimport ENOMEM, ESRCH
from libc.stdint cimport int64_t, uint64_t

from realmem._kernel.access cimport make_room
from realmem._kernel.fault cimport handle_mm_fault_locked, unshare_page_locked
from realmem._kernel.host_calls cimport mutex_lock, mutex_unlock
from realmem._kernel.mm_lock cimport lock_task, unlock_task
from realmem._kernel.mm_types cimport (
    FAULT_HOST, FAULT_OK, FAULT_OOM, FAULT_READ, FAULT_WRITE, GUP_PIN_COUNTING_BIAS, HOST_READ,
    HOST_WRITE, mm_struct, pte_host, pte_pfn,
)
from realmem._kernel.page_free cimport put_page
from realmem._kernel.pgtable cimport pte_offset_locked
from realmem._kernel.window cimport MAX_PINS
from realmem.compiler cimport SEQ_CST
from realmem.types cimport PAGE_SHIFT, PAGE_SIZE, machine, page, pfn_to_page

cdef extern from *:
    uint64_t atomic64_add "__atomic_add_fetch"(uint64_t* p, uint64_t v, int order) noexcept nogil


cdef int mm_pin(mm_struct* mm, uint64_t id, uint64_t start, uint64_t end, bint write,
                uint64_t* pfns_ret, uint64_t* fault_ret) noexcept nogil:
    cdef uint64_t addr = start
    cdef int tries = 0
    cdef int rc = FAULT_OK
    cdef machine* m
    if not lock_task(mm, id):
        return -ESRCH
    m = mm.mmu.m
    if mm.nr_pins == MAX_PINS:
        rc = -ENOMEM
    else:
        # Listed first, so that no flush for the budget takes what was mapped already.
        mm.pins[mm.nr_pins].start = start
        mm.pins[mm.nr_pins].end = end
        mm.nr_pins += 1
        while addr < end and rc == FAULT_OK:
            rc = pin_page(mm, addr, write, pfns_ret + ((addr - start) >> PAGE_SHIFT))
            if rc == FAULT_OK:
                addr += PAGE_SIZE
                tries = 0
            elif rc == FAULT_OOM:
                rc = make_room(mm, id, &tries)
                if rc == -ESRCH:
                    unpin(m, pfns_ret, (addr - start) >> PAGE_SHIFT)
                    return rc
        if rc != FAULT_OK:
            fault_ret[0] = addr
            unlist(mm, start, end)
            unpin(mm.mmu.m, pfns_ret, (addr - start) >> PAGE_SHIFT)
    unlock_task(mm)
    return rc


cdef int pin_page(mm_struct* mm, uint64_t addr, bint write, uint64_t* pfn_ret) noexcept nogil:
    cdef int access = FAULT_WRITE if write else FAULT_READ
    cdef int rc = handle_mm_fault_locked(mm, addr, access, True, 0)
    cdef uint64_t* pte
    if rc != FAULT_OK:
        return rc
    pte = pte_offset_locked(mm, addr)
    if not write:
        rc = unshare_page_locked(mm, addr, pte)
        if rc == FAULT_OK:
            rc = handle_mm_fault_locked(mm, addr, access, True, 0)
        if rc != FAULT_OK:
            return rc
    if pte_host(pte[0]) < (HOST_WRITE if write else HOST_READ):
        return FAULT_HOST
    pfn_ret[0] = pte_pfn(pte[0])
    atomic64_add(&pfn_to_page(mm.mmu.m, pfn_ret[0]).counts.word, GUP_PIN_COUNTING_BIAS, SEQ_CST)
    return FAULT_OK


cdef void unpin(machine* m, const uint64_t* pfns, uint64_t n) noexcept nogil:
    cdef uint64_t i
    cdef page* p
    for i in range(n):
        p = pfn_to_page(m, pfns[i])
        atomic64_add(&p.counts.word, -<uint64_t>(GUP_PIN_COUNTING_BIAS - 1), SEQ_CST)
        put_page(m, p)


cdef void unlist(mm_struct* mm, uint64_t start, uint64_t end) noexcept nogil:
    cdef int64_t i
    for i in range(mm.nr_pins):
        if mm.pins[i].start == start and mm.pins[i].end == end:
            mm.nr_pins -= 1
            mm.pins[i] = mm.pins[mm.nr_pins]
            return


cdef void mm_unpin(mm_struct* mm, uint64_t id, machine* m, uint64_t start, uint64_t end,
                   const uint64_t* pfns) noexcept nogil:
    mutex_lock(&mm.lock)
    if mm.id == id:
        unlist(mm, start, end)
    # Before it is unlocked: a fork may have left the pages writable, to copy them.
    unpin(m, pfns, (end - start) >> PAGE_SHIFT)
    mutex_unlock(&mm.lock)
