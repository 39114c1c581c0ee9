# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
# cython: initializedcheck=False, nonecheck=False, profile=False, linetrace=False
# Windows are aligned to 1 GiB, so that finding the one under a host address is one load
# from a table, without a lock, whatever their number.
#
# A window is not MADV_DONTFORK: frames mapped into it later would be host VMAs without that
# mark, and marked and unmarked pieces would never merge again.  A pthread_atfork hook maps
# PROT_NONE over every window in the child instead: nothing else can be mapped where a view
# that the child inherited still points.
from libc.errno cimport EAGAIN, ENOMEM
from libc.stdint cimport uint64_t
from libc.string cimport memset
from posix.mman cimport PROT_NONE, PROT_READ, PROT_WRITE

from realmem._kernel.host_calls cimport (
    host_clear, host_discard, host_nodump, host_reserve, host_unmap, mutex_lock, mutex_unlock,
)
from realmem._kernel.kernel_caches cimport (
    MM_STRUCT, TASK_STRUCT, kernel_alloc, kernel_free,
)
from realmem._kernel.mm_types cimport (
    GIB_SHIFT, MM_DEAD, MM_FREE, MM_LIVE, NR_SCRATCH, mm_core, mm_struct, mmu, task_struct,
    vma_slot,
)
from realmem._kernel.pgtable cimport pgd_alloc
from realmem._kernel.vmaindex cimport VMA_INDEX_CAPACITY
from realmem.compiler cimport SEQ_CST, atomic64_add_return, load64, peek_int, store64
from realmem.types cimport PAGE_SIZE, machine

cdef enum: GIB = 1 << 30
# One past the highest user address that a window covers; below TASK_SIZE, GiB aligned.
cdef enum: USER_TOP = 0x7FFFC0000000


cdef mm_struct* window_lookup(uint64_t host) noexcept nogil:
    cdef uint64_t slot = host >> GIB_SHIFT
    if slot >= NR_HOST_GIB:
        return NULL
    return <mm_struct*>load64(<uint64_t*>&windows.by_gib[slot])


cdef bint window_covers_locked(const mm_struct* mm, uint64_t host) noexcept nogil:
    return mm.state != MM_FREE and host - mm.host_base < mm.length


cdef mm_struct* mm_create(mmu* u, int pid, int nid, uint64_t* length_ref,
                          int* error_ret) noexcept nogil:
    cdef mm_struct* mm = block_get()
    cdef uint64_t length = length_ref[0]
    if mm == NULL:
        error_ret[0] = EAGAIN
        return NULL
    mutex_lock(&mm.lock)
    mm.mmu = u
    mm.pid = pid
    mm.length = 0
    if core_get(mm, nid) != 0:
        mm.mmu = NULL
        mutex_unlock(&mm.lock)
        block_put(mm)
        error_ret[0] = ENOMEM
        return NULL
    if reserve_halving(mm, &length) == 0:
        mm.state = MM_LIVE
        mm.user_start = <uint64_t>USER_TOP - length
        publish(mm, mm)
        length_ref[0] = length
    else:
        mm.state = MM_DEAD          # the caller ends it as it ends any other
        error_ret[0] = EAGAIN
    mutex_unlock(&mm.lock)
    return mm


cdef mm_struct* mm_create_kernel(mmu* u, uint64_t start, uint64_t* length_ref,
                                 int* error_ret) noexcept nogil:
    cdef mm_struct* mm = block_get()
    cdef bint got
    if mm == NULL:
        error_ret[0] = EAGAIN
        return NULL
    mutex_lock(&mm.lock)
    mm.pid = 0
    mm.length = 0
    mm.mmu = u
    mm.core = <mm_core*>kernel_alloc(u.m, MM_STRUCT)
    got = mm.core != NULL and reserve_halving(mm, length_ref) == 0
    if got:
        memset(mm.core, 0, sizeof(mm_core))
        mm.core.pgd_pfn = u.kernel_pgd_pfn
        mm.state = MM_LIVE
        mm.user_start = start
        publish(mm, mm)
    else:
        error_ret[0] = ENOMEM if mm.core == NULL else EAGAIN
        mm_core_put(mm)
        mm.mmu = NULL
    mutex_unlock(&mm.lock)
    if not got:
        block_put(mm)
        return NULL
    return mm


# What an address space has while it lives, its owner and its PGD: 0 or -ENOMEM.
cdef int core_get(mm_struct* mm, int nid) noexcept nogil:
    cdef machine* m = mm.mmu.m
    cdef task_struct* owner = <task_struct*>kernel_alloc(m, TASK_STRUCT)
    mm.core = <mm_core*>kernel_alloc(m, MM_STRUCT)
    if owner != NULL and mm.core != NULL:
        memset(owner, 0, sizeof(task_struct))
        owner.pid = mm.pid
        owner.nid = nid
        owner.mm = mm
        memset(mm.core, 0, sizeof(mm_core))
        if pgd_alloc(mm) == 0:
            mm.core.owner = owner
            return 0
    kernel_free(m, TASK_STRUCT, owner)
    kernel_free(m, MM_STRUCT, mm.core)
    mm.core = NULL
    return -ENOMEM


cdef void mm_core_put(mm_struct* mm) noexcept nogil:
    if mm.core != NULL:
        kernel_free(mm.mmu.m, TASK_STRUCT, mm.core.owner)
        kernel_free(mm.mmu.m, MM_STRUCT, mm.core)
        mm.core = NULL


cdef int reserve_halving(mm_struct* mm, uint64_t* length_ref) noexcept nogil:
    while reserve(mm, length_ref[0]) != 0:
        if length_ref[0] <= GIB:
            return -ENOMEM
        length_ref[0] >>= 1
    atomic64_add_return(&windows.host_vmas, 1, SEQ_CST)
    return 0


# Take [aligned, aligned + length) out of a reservation one GiB longer.
cdef int reserve(mm_struct* mm, uint64_t length) noexcept nogil:
    cdef uint64_t raw = host_reserve(length + GIB, PROT_NONE)
    cdef uint64_t base
    if raw == 0:
        return -ENOMEM
    base = (raw + GIB - 1) & ~(<uint64_t>GIB - 1)
    if base != raw:
        host_unmap(raw, base - raw)
    if base + length != raw + length + GIB:
        host_unmap(base + length, raw + GIB - base)
    mm.host_base = base
    mm.length = length
    return 0


cdef void publish(mm_struct* mm, mm_struct* value) noexcept nogil:
    cdef uint64_t slot = mm.host_base >> GIB_SHIFT
    cdef uint64_t end = (mm.host_base + mm.length) >> GIB_SHIFT
    while slot < end:
        store64(<uint64_t*>&windows.by_gib[slot], <uint64_t>value)
        slot += 1


cdef int window_reap() noexcept nogil:
    cdef mm_struct* mm = windows.all
    cdef int reaped = 0
    while mm != NULL:
        if peek_int(<int*>&mm.state) == MM_DEAD and mm.exports == 0:
            mutex_lock(&mm.lock)        # the handler may be looking at it
            if mm.length != 0:
                publish(mm, NULL)
                host_unmap(mm.host_base, mm.length)
                atomic64_add_return(&windows.host_vmas, -1 - mm.host_edges - 2 * mm.nr_scratch,
                                    SEQ_CST)
            mm.state = MM_FREE
            mm.length = 0
            mm.host_base = 0
            reaped += 1
            mutex_unlock(&mm.lock)
            block_put(mm)
        mm = mm.all_next
    return reaped


cdef void windows_after_fork() noexcept nogil:
    cdef mm_struct* mm = windows.all
    while mm != NULL:
        if mm.state != MM_FREE and mm.length != 0:
            # Where the host refuses even that, unmap: a stale view then dies by a signal.
            if host_clear(mm.host_base, mm.length) != 0:
                host_unmap(mm.host_base, mm.length)
            publish(mm, NULL)
        mm = mm.all_next
    windows.all = NULL
    windows.pool = NULL
    windows.pool_lock.word = 0
    windows.host_vmas = 0
    windows.generation += 1


# ---- blocks -----------------------------------------------------------------

cdef mm_struct* block_get() noexcept nogil:
    cdef mm_struct* mm
    cdef uint64_t index_bytes = VMA_INDEX_CAPACITY * sizeof(vma_slot)
    cdef uint64_t block
    mutex_lock(&windows.pool_lock)
    mm = windows.pool
    if mm != NULL:
        windows.pool = mm.pool_next
    else:
        block = host_reserve(PAGE_SIZE + index_bytes, PROT_READ | PROT_WRITE)
        if block != 0:
            host_nodump(block, PAGE_SIZE + index_bytes)
            mm = <mm_struct*>block
            mm.vmas.slots = <vma_slot*>(block + PAGE_SIZE)
            mm.vmas.capacity = VMA_INDEX_CAPACITY
            mm.all_next = windows.all
            store64(<uint64_t*>&windows.all, block)
    if mm != NULL:
        windows.next_id += 1
        reset(mm, windows.next_id)
    mutex_unlock(&windows.pool_lock)
    return mm


cdef void block_put(mm_struct* mm) noexcept nogil:
    host_discard(<uint64_t>mm.vmas.slots, mm.vmas.capacity * sizeof(vma_slot))
    mutex_lock(&windows.pool_lock)
    mm.pool_next = windows.pool
    windows.pool = mm
    mutex_unlock(&windows.pool_lock)


cdef void reset(mm_struct* mm, uint64_t id) noexcept nogil:
    mm.id = id
    mm.state = MM_FREE
    mm.vmas.count = 0
    mm.core = NULL
    mm.host_edges = 0
    mm.flush_hand = 0
    mm.nr_scratch = 0
    mm.scratch_hand = 0
    mm.exports = 0
    memset(mm.scratch, 0, NR_SCRATCH * sizeof(uint64_t))
