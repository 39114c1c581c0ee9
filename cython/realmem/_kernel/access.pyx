# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
# cython: initializedcheck=False, nonecheck=False, profile=False, linetrace=False
# A page's walk is remembered in a soft TLB for as long as the lock is held: nobody can change
# an entry meanwhile.  The lock is given up now and then, for the threads that wait in the
# handler.
from libc.errno cimport ESRCH
from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memcpy, memset

from realmem._kernel.fault cimport handle_mm_fault_locked
from realmem._kernel.mm_lock cimport lock_task, unlock_task
from realmem._kernel.mm_types cimport (
    FAULT_OK, FAULT_READ, FAULT_WRITE, PTE_ACCESSED, PTE_DIRTY, PTE_PRESENT, PTE_RW,
    PTE_SOFT_DIRTY, TASK_SIZE, mm_struct, pte_pfn,
)
from realmem._kernel.pgtable cimport pte_offset_locked
from realmem.compiler cimport likely
from realmem.types cimport PAGE_SHIFT, PAGE_SIZE, pfn_address

cdef extern from *:
    # A store that other threads' stores to the same byte survive.
    uint8_t atomic8_or "__atomic_fetch_or"(uint8_t* p, uint8_t v, int order) noexcept nogil

cdef enum:
    SOFT_TLB = 256              # entries; direct mapped
    TURN_PAGES = 4096           # between two moments without the lock
    TURN_ACCESSES = 65536
    RELAXED = 0

# By page: where its frame is; what a hit needs no walk for.
cdef struct tlb_entry:
    uint64_t page               # page number << 1, | 1 for one that was walked for a store; 0
    uint8_t* frame


# Whether the lock was given up, and another live turn began.
cdef inline bint take_turns(mm_struct* mm, uint64_t id) noexcept nogil:
    unlock_task(mm)
    return lock_task(mm, id)


# The entry of addr once it allows the access.
cdef inline int soft_pte(mm_struct* mm, uint64_t addr, bint write,
                         uint64_t** pte_ret) noexcept nogil:
    # A store to a clean entry goes by the fault, which notes it.
    cdef uint64_t need = PTE_PRESENT | PTE_ACCESSED | (
        PTE_RW | PTE_DIRTY | PTE_SOFT_DIRTY if write else 0)
    cdef uint64_t* pte = pte_offset_locked(mm, addr) if addr < <uint64_t>TASK_SIZE else NULL
    cdef int rc
    if pte == NULL or pte[0] & need != need:
        rc = handle_mm_fault_locked(mm, addr, FAULT_WRITE if write else FAULT_READ, False, 0)
        if rc != FAULT_OK:
            return rc
        pte = pte_offset_locked(mm, addr)
    pte_ret[0] = pte
    return FAULT_OK


cdef inline uint8_t* frame_at(mm_struct* mm, const uint64_t* pte) noexcept nogil:
    return <uint8_t*>pfn_address(mm.mmu.m, pte_pfn(pte[0]))


# What is done to each page of a range.
cdef enum:
    COPY_FROM = 0
    COPY_TO = 1
    FILL = 2
    TOUCH = 3


# Offsets are counted up, since addr + n may pass 2**64.
cdef int each_page(mm_struct* mm, uint64_t id, uint64_t addr, uint64_t n, int what, bint write,
                   uint8_t* buffer, int byte, uint64_t* done_ret) noexcept nogil:
    cdef uint64_t done = 0
    cdef uint64_t turn = 0
    cdef uint64_t into, part
    cdef uint64_t* pte = NULL
    cdef uint8_t* at
    cdef int rc = FAULT_OK
    if not lock_task(mm, id):
        return -ESRCH
    while done < n:
        rc = soft_pte(mm, addr + done, write, &pte)
        if rc != FAULT_OK:
            break
        into = (addr + done) & (PAGE_SIZE - 1)
        part = min(n - done, PAGE_SIZE - into)
        at = frame_at(mm, pte) + into
        if what == COPY_FROM:
            memcpy(buffer + done, at, part)
        elif what == COPY_TO:
            memcpy(at, buffer + done, part)
        elif what == FILL:
            memset(at, byte, part)
        done += part
        turn += 1
        if turn & (TURN_PAGES - 1) == 0 and not take_turns(mm, id):
            done_ret[0] = done
            return -ESRCH
    unlock_task(mm)
    done_ret[0] = done
    return rc


cdef int mm_access(mm_struct* mm, uint64_t id, uint64_t addr, void* buffer, uint64_t n,
                   bint write, uint64_t* done_ret) noexcept nogil:
    return each_page(mm, id, addr, n, COPY_TO if write else COPY_FROM, write, <uint8_t*>buffer,
                     0, done_ret)


cdef int mm_fill(mm_struct* mm, uint64_t id, uint64_t addr, uint64_t n, int byte,
                 uint64_t* done_ret) noexcept nogil:
    return each_page(mm, id, addr, n, FILL, True, NULL, byte, done_ret)


cdef int mm_touch(mm_struct* mm, uint64_t id, uint64_t addr, uint64_t n, bint write,
                  uint64_t* done_ret) noexcept nogil:
    return each_page(mm, id, addr, n, TOUCH, write, NULL, 0, done_ret)


cdef int mm_access_all(mm_struct* mm, uint64_t id, const uint64_t* addresses,
                       const uint8_t* writes, uint64_t n, uint64_t* done_ret) noexcept nogil:
    cdef tlb_entry tlb[SOFT_TLB]
    cdef tlb_entry* entry
    cdef uint64_t i = 0
    cdef uint64_t stop, addr, tag
    cdef uint64_t* pte = NULL
    cdef uint8_t _seen
    cdef bint write
    cdef int rc = FAULT_OK
    if not lock_task(mm, id):
        return -ESRCH
    while i < n and rc == FAULT_OK:
        memset(tlb, 0, sizeof(tlb))
        stop = min(n, i + TURN_ACCESSES)
        while i < stop:
            addr = addresses[i]
            write = writes != NULL and writes[i] != 0
            tag = (addr >> PAGE_SHIFT) << 1
            entry = &tlb[(addr >> PAGE_SHIFT) & (SOFT_TLB - 1)]
            # An entry for stores serves loads, too.
            if not likely(entry.page | 1 == tag | 1 and entry.page >= tag + write
                          and entry.frame != NULL):
                rc = soft_pte(mm, addr, write, &pte)
                if rc != FAULT_OK:
                    break
                entry.page = tag + write
                entry.frame = frame_at(mm, pte)
            if write:
                atomic8_or(entry.frame + (addr & (PAGE_SIZE - 1)), 0, RELAXED)
            else:
                _seen = (<volatile uint8_t*>entry.frame)[addr & (PAGE_SIZE - 1)]
            i += 1
        if i < n and rc == FAULT_OK and not take_turns(mm, id):
            done_ret[0] = i
            return -ESRCH
    unlock_task(mm)
    done_ret[0] = i
    return rc
