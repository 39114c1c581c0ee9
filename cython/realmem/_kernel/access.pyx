# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
# cython: initializedcheck=False, nonecheck=False, profile=False, linetrace=False
# Many accesses go by blocks, in three passes: where their entries are, what these say, and the
# accesses.  What a pass needs was asked of memory in the one before, so that the misses of a
# block overlap.  The soft TLB remembers page tables for as long as the lock is held: none goes
# meanwhile.  The lock is given up now and then, for the threads that wait in the handler.
from libc.errno cimport ESRCH
from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memcpy, memset

from realmem._kernel.fault cimport handle_mm_fault_locked
from realmem._kernel.mm_lock cimport lock_task, unlock_task
from realmem._kernel.mm_types cimport (
    FAULT_OK, FAULT_OOM, FAULT_READ, FAULT_WRITE, PMD_SHIFT, PTE_ACCESSED, PTE_DIRTY, PTE_PRESENT,
    PTE_RW, PTE_SOFT_DIRTY, PTRS_PER_TABLE, TASK_SIZE, mm_struct, mmu, pte_pfn,
)
from realmem._kernel.pgtable cimport pte_offset_locked
from realmem._kernel.vmscan cimport reclaim_begins, reclaim_ends, reclaim_for_fault
from realmem.compiler cimport unlikely
from realmem.types cimport PAGE_SHIFT, PAGE_SIZE, pfn_address

cdef extern from *:
    # A store that other threads' stores to the same byte survive.
    uint8_t atomic8_or "__atomic_fetch_or"(uint8_t* p, uint8_t v, int order) noexcept nogil
    void prefetch "__builtin_prefetch"(const void* p) noexcept nogil

cdef enum:
    SOFT_TLB = 512              # entries; direct mapped
    BLOCK = 32
    TURN_PAGES = 4096           # between two moments without the lock
    TURN_ACCESSES = 65536
    RELAXED = 0

# The page table of 2 MiB.
cdef struct tlb_entry:
    uint64_t region             # its number + 1; 0: none
    uint64_t* table

# Accesses on their way, and what all passes need.
cdef struct batch:
    mm_struct* mm
    const uint64_t* addresses
    const uint8_t* writes       # NULL: all are reads
    uint64_t* ptes[32]          # BLOCK; NULL: no table yet
    uint8_t* bytes[32]          # NULL: by a fault
    tlb_entry tlb[512]          # SOFT_TLB


# Whether the lock was given up, and another live turn began.
cdef inline bint take_turns(mm_struct* mm, uint64_t id) noexcept nogil:
    unlock_task(mm)
    return lock_task(mm, id)


# What an entry must say for an access to go without a fault.  A store to a clean entry goes by
# the fault, which notes it.
cdef inline uint64_t entry_needed(bint write) noexcept nogil:
    return PTE_PRESENT | PTE_ACCESSED | (
        PTE_RW | PTE_DIRTY | PTE_SOFT_DIRTY if write else 0)


cdef int make_room(mm_struct* mm, uint64_t id, int* turn_ref) noexcept nogil:
    cdef mmu* u = mm.mmu
    cdef bint found
    reclaim_begins(u)
    unlock_task(mm)
    found = reclaim_for_fault(u, turn_ref[0])
    turn_ref[0] += 1
    reclaim_ends(u)
    if not lock_task(mm, id):
        return -ESRCH
    return FAULT_OK if found else FAULT_OOM


# The entry of addr once it allows the access.
cdef inline int soft_pte(mm_struct* mm, uint64_t addr, bint write,
                         uint64_t** pte_ret) noexcept nogil:
    cdef uint64_t need = entry_needed(write)
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
    cdef int tries = 0
    cdef int rc = FAULT_OK
    if not lock_task(mm, id):
        return -ESRCH
    while done < n:
        rc = soft_pte(mm, addr + done, write, &pte)
        if unlikely(rc == FAULT_OOM):
            rc = make_room(mm, id, &tries)
            if rc == FAULT_OK:
                continue
            if rc == -ESRCH:
                done_ret[0] = done
                return rc
        if rc != FAULT_OK:
            break
        tries = 0
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
    cdef batch b
    cdef uint64_t done = 0
    cdef uint64_t before = 0
    cdef uint64_t stop
    cdef int tries = 0
    cdef int rc = FAULT_OK
    b.mm = mm
    b.addresses = addresses
    b.writes = writes
    if not lock_task(mm, id):
        return -ESRCH
    while done < n and rc == FAULT_OK:
        stop = min(n, done + TURN_ACCESSES)
        if stop - done >= BLOCK:
            memset(b.tlb, 0, sizeof(b.tlb))
        while stop - done >= BLOCK and rc == FAULT_OK:
            find_entries(&b, done)
            read_entries(&b, done)
            rc = access_block(&b, &done)
        while done < stop and rc == FAULT_OK:
            rc = access_one(&b, &done)
        if unlikely(rc == FAULT_OOM):
            if done != before:
                tries = 0           # it gets on
            before = done
            rc = make_room(mm, id, &tries)
            if rc == -ESRCH:
                done_ret[0] = done
                return rc
            continue
        tries = 0
        if done < n and rc == FAULT_OK and not take_turns(mm, id):
            done_ret[0] = done
            return -ESRCH
    unlock_task(mm)
    done_ret[0] = done
    return rc


cdef inline void find_entries(batch* b, uint64_t first) noexcept nogil:
    cdef uint64_t addr
    cdef uint64_t* pte
    cdef tlb_entry* entry
    cdef int i
    for i in range(BLOCK):
        addr = b.addresses[first + i]
        entry = &b.tlb[(addr >> PMD_SHIFT) & (SOFT_TLB - 1)]
        if unlikely(entry.region != (addr >> PMD_SHIFT) + 1):
            pte = pte_offset_locked(b.mm, addr) if addr < <uint64_t>TASK_SIZE else NULL
            if pte == NULL:
                b.ptes[i] = NULL
                continue
            entry.region = (addr >> PMD_SHIFT) + 1
            entry.table = <uint64_t*>(<uint64_t>pte & ~<uint64_t>(PAGE_SIZE - 1))
        b.ptes[i] = entry.table + ((addr >> PAGE_SHIFT) & (PTRS_PER_TABLE - 1))
        prefetch(b.ptes[i])


cdef inline void read_entries(batch* b, uint64_t first) noexcept nogil:
    cdef uint64_t pte
    cdef int i
    for i in range(BLOCK):
        b.bytes[i] = NULL
        if b.ptes[i] == NULL:
            continue
        pte = b.ptes[i][0]
        if pte & needed(b, first + i) == needed(b, first + i):
            b.bytes[i] = <uint8_t*>(pfn_address(b.mm.mmu.m, pte_pfn(pte))
                                    + (b.addresses[first + i] & (PAGE_SIZE - 1)))
            prefetch(b.bytes[i])


# After a fault, which may change what was read of others, each goes by itself.
cdef inline int access_block(batch* b, uint64_t* done_ref) noexcept nogil:
    cdef int rc = FAULT_OK
    cdef int i
    for i in range(BLOCK):
        if unlikely(b.bytes[i] == NULL):
            break
        access_byte(b.bytes[i], is_write(b, done_ref[0] + i))
    else:
        done_ref[0] += BLOCK
        return rc
    done_ref[0] += i
    while i < BLOCK and rc == FAULT_OK:
        rc = access_one(b, done_ref)
        i += 1
    return rc


cdef inline int access_one(batch* b, uint64_t* done_ref) noexcept nogil:
    cdef uint64_t addr = b.addresses[done_ref[0]]
    cdef bint write = is_write(b, done_ref[0])
    cdef uint64_t* pte = NULL
    cdef int rc = soft_pte(b.mm, addr, write, &pte)
    if rc == FAULT_OK:
        access_byte(frame_at(b.mm, pte) + (addr & (PAGE_SIZE - 1)), write)
        done_ref[0] += 1
    return rc


cdef inline bint is_write(const batch* b, uint64_t i) noexcept nogil:
    return b.writes != NULL and b.writes[i] != 0


cdef inline uint64_t needed(const batch* b, uint64_t i) noexcept nogil:
    return entry_needed(is_write(b, i))


cdef inline void access_byte(uint8_t* at, bint write) noexcept nogil:
    cdef uint8_t _seen
    if write:
        atomic8_or(at, 0, RELAXED)
    else:
        _seen = (<volatile uint8_t*>at)[0]
