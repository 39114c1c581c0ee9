# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
# cython: initializedcheck=False, nonecheck=False, profile=False, linetrace=False
# Windows are aligned to 1 GiB, so that finding the one under a host address is one load
# from a table, without a lock, whatever their number.
#
# A window is not MADV_DONTFORK: frames mapped into it later would be host VMAs without that
# mark, and marked and unmarked pieces would never merge again.  A pthread_atfork hook maps
# PROT_NONE over every window in the child instead: nothing else can be mapped where a view
# that the child inherited still points.
from libc.errno cimport EAGAIN, ENOMEM, ESRCH
from libc.stdint cimport uint64_t
from libc.string cimport memset
from posix.mman cimport PROT_NONE, PROT_READ, PROT_WRITE

from realmem._kernel.host_calls cimport (
    host_clear, host_discard, host_nodump, host_reserve, host_unmap, mutex_lock, mutex_unlock,
)
from realmem._kernel.kernel_caches cimport (
    MM_STRUCT, TASK_STRUCT, kernel_alloc, kernel_free,
)
from realmem._kernel.lock_order cimport LOCK_MM, check_mutex
from realmem._kernel.mm_types cimport (
    GIB_SHIFT, MM_DEAD, MM_FREE, MM_LIVE, NR_RLIMITS, NR_SCRATCH, RLIM_MEMLOCK, RLIM_STACK,
    mm_core, mm_struct, mmu, pin_range, task_struct, vma_chunk, vma_dir, window, window_of,
)
from realmem._kernel.percpu cimport area_run_on
from realmem._kernel.pgtable cimport pgd_alloc
from realmem._kernel.vmaindex cimport NR_VMA_CHUNKS, vma_index_clear
from realmem.compiler cimport SEQ_CST, atomic64_add_return, load64, peek_int, store64
from realmem.types cimport machine

cdef enum: GIB = 1 << 30
cdef enum: DEFAULT_RLIMIT = 8 << 20     # STACK and MEMLOCK, as Linux's init gets them
# One past the highest user address that a window covers; below TASK_SIZE, GiB aligned.
cdef enum: USER_TOP = 0x7FFFC0000000


cdef mm_struct* window_lookup(uint64_t host) noexcept nogil:
    cdef uint64_t slot = host >> GIB_SHIFT
    if slot >= NR_HOST_GIB:
        return NULL
    return <mm_struct*>load64(<uint64_t*>&windows.by_gib[slot])


cdef window* window_covering_locked(const mm_struct* mm, uint64_t host) noexcept nogil:
    cdef window* w = mm.windows
    cdef window* end = w + mm.nr_windows
    if mm.state != MM_FREE:
        while w != end:
            if host - w.host_base < w.length:
                return w
            w += 1
    return NULL


cdef mm_struct* mm_create(mmu* u, int pid, int nid, uint64_t* length_ref,
                          int* error_ret) noexcept nogil:
    cdef mm_struct* mm = block_get(u.m)
    cdef window* w
    if mm == NULL:
        error_ret[0] = EAGAIN
        return NULL
    mm.mmu = u
    mm.pid = pid
    w = mm.windows
    if core_get(mm, nid) != 0:
        mm.mmu = NULL
        mutex_unlock(&mm.lock)
        block_put(mm)
        error_ret[0] = ENOMEM
        return NULL
    if reserve_halving(w, length_ref) == 0:
        mm.state = MM_LIVE
        w.user_start = <uint64_t>USER_TOP - w.length
        mm.nr_windows = 1
        publish(w, mm)
    else:
        mm.state = MM_DEAD          # the caller ends it as it ends any other
        error_ret[0] = EAGAIN
    mutex_unlock(&mm.lock)
    return mm


cdef mm_struct* mm_create_kernel(mmu* u, uint64_t start, uint64_t* length_ref,
                                 int* error_ret) noexcept nogil:
    cdef mm_struct* mm = block_get(u.m)
    cdef window* w
    cdef bint got
    if mm == NULL:
        error_ret[0] = EAGAIN
        return NULL
    mm.pid = 0
    mm.mmu = u
    w = mm.windows
    mm.core = <mm_core*>kernel_alloc(u.m, MM_STRUCT)
    got = mm.core != NULL and reserve_halving(w, length_ref) == 0
    if got:
        memset(mm.core, 0, sizeof(mm_core))
        mm.core.pgd_pfn = u.kernel_pgd_pfn
        mm.state = MM_LIVE
        w.user_start = start
        mm.nr_windows = 1
        publish(w, mm)
    else:
        error_ret[0] = ENOMEM if mm.core == NULL else EAGAIN
        mm_core_put(mm)
        mm.mmu = NULL
    mutex_unlock(&mm.lock)
    if not got:
        block_put(mm)
        return NULL
    return mm


# Every GiB of [start, end) that no window stands for gets one, runs of them together.
cdef int mm_cover(mm_struct* mm, uint64_t id, uint64_t start, uint64_t end) noexcept nogil:
    cdef uint64_t addr = start & ~<uint64_t>(GIB - 1)
    cdef uint64_t stop
    cdef window* w
    cdef int rc = 0
    end = (end + GIB - 1) & ~<uint64_t>(GIB - 1)
    mutex_lock(&mm.lock)
    if mm.id != id or mm.state != MM_LIVE:
        rc = -ESRCH
    while rc == 0 and addr < end:
        w = window_of(mm, addr)
        if w != NULL:
            addr = w.user_start + w.length
            continue
        stop = addr + GIB
        while stop < end and window_of(mm, stop) == NULL:
            stop += GIB
        if mm.nr_windows == MAX_WINDOWS:
            rc = -ENOMEM
            break
        w = mm.windows + mm.nr_windows
        rc = reserve(w, stop - addr)
        if rc == 0:
            w.user_start = addr
            mm.nr_windows += 1
            atomic64_add_return(&windows.host_vmas, 1, SEQ_CST)
            publish(w, mm)
        addr = stop
    mutex_unlock(&mm.lock)
    return rc


# What an address space has while it lives, its owner and its PGD: 0 or -ENOMEM.
cdef int core_get(mm_struct* mm, int nid) noexcept nogil:
    cdef machine* m = mm.mmu.m
    cdef int i
    cdef task_struct* owner
    area_run_on(m, nid)
    owner = <task_struct*>kernel_alloc(m, TASK_STRUCT)
    mm.core = <mm_core*>kernel_alloc(m, MM_STRUCT)
    if owner != NULL and mm.core != NULL:
        memset(owner, 0, sizeof(task_struct))
        owner.pid = mm.pid
        owner.nid = nid
        owner.mm = mm
        memset(mm.core, 0, sizeof(mm_core))
        if pgd_alloc(mm) == 0:
            mm.core.owner = owner
            for i in range(NR_RLIMITS):
                mm.core.rlimits[i] = <uint64_t>-1
            mm.core.rlimits[RLIM_STACK] = DEFAULT_RLIMIT
            mm.core.rlimits[RLIM_MEMLOCK] = DEFAULT_RLIMIT
            area_run_on(m, -1)
            return 0
    area_run_on(m, -1)
    kernel_free(m, TASK_STRUCT, owner)
    kernel_free(m, MM_STRUCT, mm.core)
    mm.core = NULL
    return -ENOMEM


cdef void mm_core_put(mm_struct* mm) noexcept nogil:
    if mm.core != NULL:
        kernel_free(mm.mmu.m, TASK_STRUCT, mm.core.owner)
        kernel_free(mm.mmu.m, MM_STRUCT, mm.core)
        mm.core = NULL


cdef int reserve_halving(window* w, uint64_t* length_ref) noexcept nogil:
    while reserve(w, length_ref[0]) != 0:
        if length_ref[0] <= GIB:
            return -ENOMEM
        length_ref[0] >>= 1
    atomic64_add_return(&windows.host_vmas, 1, SEQ_CST)
    return 0


# Take [aligned, aligned + length) out of a reservation one GiB longer.
cdef int reserve(window* w, uint64_t length) noexcept nogil:
    cdef uint64_t raw = host_reserve(length + GIB, PROT_NONE)
    cdef uint64_t base
    if raw == 0:
        return -ENOMEM
    base = (raw + GIB - 1) & ~(<uint64_t>GIB - 1)
    if base != raw:
        host_unmap(raw, base - raw)
    if base + length != raw + length + GIB:
        host_unmap(base + length, raw + GIB - base)
    w.host_base = base
    w.length = length
    return 0


cdef void publish(const window* w, mm_struct* value) noexcept nogil:
    cdef uint64_t slot = w.host_base >> GIB_SHIFT
    cdef uint64_t end = (w.host_base + w.length) >> GIB_SHIFT
    while slot < end:
        store64(<uint64_t*>&windows.by_gib[slot], <uint64_t>value)
        slot += 1


cdef int window_reap() noexcept nogil:
    cdef mm_struct* mm = windows.all
    cdef int reaped = 0
    cdef int i
    while mm != NULL:
        if peek_int(<int*>&mm.state) == MM_DEAD and mm.exports == 0:
            mutex_lock(&mm.lock)        # the handler may be looking at it
            for i in range(mm.nr_windows):
                publish(mm.windows + i, NULL)
                host_unmap(mm.windows[i].host_base, mm.windows[i].length)
            atomic64_add_return(&windows.host_vmas,
                                -mm.nr_windows - mm.host_edges - 2 * mm.nr_scratch, SEQ_CST)
            mm.state = MM_FREE
            mm.nr_windows = 0
            reaped += 1
            mutex_unlock(&mm.lock)
            block_put(mm)
        mm = mm.all_next
    return reaped


cdef void windows_after_fork() noexcept nogil:
    cdef mm_struct* mm = windows.all
    cdef window* w
    cdef int i
    while mm != NULL:
        for i in range(mm.nr_windows):      # none of a free block
            w = mm.windows + i
            # Where the host refuses even that, unmap: a stale view then dies by a signal.
            if host_clear(w.host_base, w.length) != 0:
                host_unmap(w.host_base, w.length)
            publish(w, NULL)
        mm = mm.all_next
    windows.all = NULL
    windows.pool = NULL
    windows.pool_lock.word = 0
    windows.host_vmas = 0
    windows.generation += 1


# ---- blocks -----------------------------------------------------------------

cdef enum:
    WINDOWS_AT = 4096               # behind the mm_struct itself
    PINS_AT = WINDOWS_AT + 24 * MAX_WINDOWS
    DIR_AT = PINS_AT + 16 * MAX_PINS
    CHUNKS_AT = DIR_AT + 24 * NR_VMA_CHUNKS
    BLOCK_BYTES = CHUNKS_AT + 3072 * NR_VMA_CHUNKS


# Get a block, locked: who looked its last process up may come to the lock until he has seen
# that it is another.
cdef mm_struct* block_get(const machine* m) noexcept nogil:
    cdef mm_struct* mm
    cdef uint64_t block, id = 0
    mutex_lock(&windows.pool_lock)
    mm = windows.pool
    if mm != NULL:
        windows.pool = mm.pool_next
    else:
        block = host_reserve(BLOCK_BYTES, PROT_READ | PROT_WRITE)
        if block != 0:
            host_nodump(block, BLOCK_BYTES)
            mm = <mm_struct*>block
            mm.windows = <window*>(block + WINDOWS_AT)
            mm.pins = <pin_range*>(block + PINS_AT)
            mm.vmas.dir = <vma_dir*>(block + DIR_AT)
            mm.vmas.chunks = <vma_chunk*>(block + CHUNKS_AT)
            mm.all_next = windows.all
            store64(<uint64_t*>&windows.all, block)
    if mm != NULL:
        windows.next_id += 1
        id = windows.next_id
    mutex_unlock(&windows.pool_lock)
    if mm != NULL:
        mutex_lock(&mm.lock)
        reset(mm, id)
        check_mutex(m, &mm.lock, LOCK_MM, id)
    return mm


cdef void block_put(mm_struct* mm) noexcept nogil:
    host_discard(<uint64_t>mm.windows, BLOCK_BYTES - WINDOWS_AT)
    mutex_lock(&windows.pool_lock)
    mm.pool_next = windows.pool
    windows.pool = mm
    mutex_unlock(&windows.pool_lock)


cdef void reset(mm_struct* mm, uint64_t id) noexcept nogil:
    mm.id = id
    mm.state = MM_FREE
    vma_index_clear(&mm.vmas)
    mm.generation = 0
    mm.grown = 0
    mm.core = NULL
    mm.host_edges = 0
    mm.nr_runs = 0
    mm.flush_hand = 0
    mm.nr_scratch = 0
    mm.scratch_hand = 0
    mm.nr_windows = 0
    mm.nr_pins = 0
    mm.windows[0].length = 0
    mm.exports = 0
    memset(mm.scratch, 0, NR_SCRATCH * sizeof(uint64_t))
