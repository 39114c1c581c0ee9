# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
# cython: initializedcheck=False, nonecheck=False, profile=False, linetrace=False
# Each thread keeps a list of the checked locks that it holds.  The handler interrupts nobody who
# holds one, so the list is never found half changed.
from libc.stdint cimport uint64_t
from libc.string cimport memcpy, strlen

from realmem.compiler cimport BUG, lock_order, poke64
from realmem.types cimport MACHINE_DEBUG

cdef extern from *:
    """
    #define RM_MOST_HELD 12
    typedef struct {
        int n;
        uint64_t rank[RM_MOST_HELD];
        const void *lock[RM_MOST_HELD];
    } rm_held;
    /* By rank. */
    static const char *const rm_lock_names[] = {
        "", "mm_struct.lock", "address_space.lock", "mmu.swap_lock", "mmu.rmap_lock",
        "machine.areas_lock",
        "cpu_area.lock", "slab_state.lock", "kmem_cache_node.depot_lock",
        "kmem_cache_node.list_lock", "zone.lock", "lruvec.lock",
    };
    static __thread rm_held rm_held_here __attribute__((tls_model("initial-exec")));
    """
    ctypedef struct held_locks "rm_held":
        int n
        uint64_t rank[12]
        const void* lock[12]
    held_locks* held "(&rm_held_here)"
    const char* const* lock_names "rm_lock_names"

cdef enum:
    MOST_HELD = 12              # validate_mms takes more: of one kind, and alone
    RANK_SHIFT = 56             # above an id

cdef lock_order checks


# One that was only tried deadlocks with nobody, whatever else is held.
cdef void taking(const void* lock, uint64_t rank, int tried) noexcept nogil:
    cdef int i
    for i in range(held.n):
        if held.rank[i] >= rank and not tried and not may_take_all(
                held.rank[i] >> RANK_SHIFT, rank >> RANK_SHIFT):
            complain(held.rank[i], rank)
    if held.n < MOST_HELD:
        held.lock[held.n] = lock
        held.rank[held.n] = rank
        held.n += 1


# Who holds the lock of a list may take those of all on it, in any order: nobody else takes two.
cdef bint may_take_all(uint64_t rank, uint64_t wanted) noexcept nogil:
    cdef int list_lock = lock_of_list(wanted)
    cdef int i
    if list_lock != 0 and lock_of_list(rank) == list_lock:
        for i in range(held.n):
            if held.rank[i] >> RANK_SHIFT == <uint64_t>list_lock:
                return True
    return False


cdef inline int lock_of_list(uint64_t rank) noexcept nogil:
    if rank == LOCK_AREA:
        return LOCK_AREAS
    return LOCK_SLAB_STATE if rank == LOCK_DEPOT or rank == LOCK_SLABS else 0


cdef void given(const void* lock) noexcept nogil:
    cdef int i
    for i in range(held.n - 1, -1, -1):
        if held.lock[i] == lock:
            held.n -= 1
            held.lock[i] = held.lock[held.n]
            held.rank[i] = held.rank[held.n]
            break


cdef void complain(uint64_t rank, uint64_t wanted) noexcept nogil:
    cdef char text[160]
    cdef char* at = append(text, b"lock order: ")
    at = append(at, lock_names[wanted >> RANK_SHIFT])
    at = append(at, b" is wanted by one who holds ")
    at = append(at, lock_names[rank >> RANK_SHIFT])
    BUG(text)


cdef char* append(char* at, const char* text) noexcept nogil:
    memcpy(at, text, strlen(text) + 1)
    return at + strlen(text)


checks.taking = taking
checks.given = given


cdef void check_spinlock(const machine* m, spinlock* lock, int rank,
                         uint64_t id=0) noexcept nogil:
    lock.rank = (<uint64_t>rank << RANK_SHIFT) + id
    lock.order = &checks if m.options & MACHINE_DEBUG else NULL


# Checks that began do not end: who has noted the lock as taken must come to note it as given.
cdef void check_mutex(const machine* m, mutex* lock, int rank, uint64_t id) noexcept nogil:
    poke64(&lock.rank, (<uint64_t>rank << RANK_SHIFT) + id)
    if m.options & MACHINE_DEBUG:
        poke64(<uint64_t*>&lock.order, <uint64_t>&checks)
