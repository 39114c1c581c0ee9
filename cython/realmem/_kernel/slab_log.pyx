# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
# cython: initializedcheck=False, nonecheck=False, profile=False, linetrace=False
# The ring of what the checks of slab caches found.
from libc.errno cimport ENOMEM
from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset
from posix.time cimport clock_gettime, timespec

from realmem._kernel.slab_types cimport kmem_cache, slab, slab_address, slab_of, slab_state
from realmem.compiler cimport RELAXED, atomic64_add_return, spin_lock, spin_unlock
from realmem.linux cimport (
    MADV_DONTFORK, MAP_ANONYMOUS, MAP_FAILED, MAP_NORESERVE, MAP_PRIVATE, PROT_READ, PROT_WRITE,
    madvise, mmap, munmap,
)
from realmem.types cimport machine

cdef extern from "<time.h>" nogil:
    const int CLOCK_MONOTONIC_COARSE


cdef int slab_log_init(slab_state* state) noexcept nogil:
    cdef void* where
    if state.log != NULL:
        return 0
    where = mmap(NULL, sizeof(slab_log), PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    if where == MAP_FAILED:
        return -ENOMEM
    madvise(where, sizeof(slab_log), MADV_DONTFORK)
    state.log = where
    return 0


cdef void slab_log_exit(slab_state* state) noexcept nogil:
    if state.log != NULL:
        munmap(state.log, sizeof(slab_log))
        state.log = NULL


cdef inline slab_log* log_of(const machine* m) noexcept nogil:
    return <slab_log*>slab_of(m).log


cdef finding* slab_log_begin(kmem_cache* s, int what, const slab* sl) noexcept nogil:
    cdef slab_log* log = log_of(s.machine)
    cdef finding* f
    if what < REMAINING_OBJECT:
        atomic64_add_return(&s.nr_errors, 1, RELAXED)
    spin_lock(&log.lock)
    if log.count == NR_FINDINGS:
        log.lost += 1
        spin_unlock(&log.lock)
        return NULL
    f = &log.ring[(log.first + log.count) % NR_FINDINGS]
    memset(f, 0, sizeof(finding) - sizeof(f.dump))
    f.cache = s
    f.what = what
    f.when = jiffies()
    if sl != NULL:
        f.slab = <uint64_t>sl
        f.slab_flags = sl.flags
        f.base = <uint64_t>slab_address(s.machine, sl)
        f.freelist = <uint64_t>sl.freelist
        f.objects = sl.objects
        f.inuse = sl.inuse
    return f


cdef void slab_log_end(kmem_cache* s) noexcept nogil:
    log_of(s.machine).count += 1
    spin_unlock(&log_of(s.machine).lock)


cdef void slab_log_note(kmem_cache* s, int what, const slab* sl, int64_t found,
                        int64_t expected) noexcept nogil:
    cdef finding* f = slab_log_begin(s, what, sl)
    if f != NULL:
        f.found = found
        f.expected = expected
        slab_log_end(s)


cdef void add_section(finding* f, int kind, const void* where, uint64_t bytes) noexcept nogil:
    cdef finding_section* section = &f.sections[f.nr_sections]
    if bytes == 0:
        return
    section.address = <uint64_t>where
    section.bytes = <uint32_t>min(bytes, <uint64_t>SECTION_BYTES)
    section.kind = <uint16_t>kind
    section.slot = <uint16_t>f.nr_sections
    memcpy(f.dump[f.nr_sections], where, section.bytes)
    f.nr_sections += 1


cdef bint slab_log_take(machine* m, finding* ret) noexcept nogil:
    cdef slab_log* log = log_of(m)
    cdef bint there
    if log == NULL:
        return False
    spin_lock(&log.lock)
    there = log.count != 0
    if there:
        memcpy(ret, &log.ring[log.first], sizeof(finding))
        log.first = (log.first + 1) % NR_FINDINGS
        log.count -= 1
    spin_unlock(&log.lock)
    return there


cdef uint64_t slab_log_lost(machine* m) noexcept nogil:
    cdef slab_log* log = log_of(m)
    cdef uint64_t lost
    if log == NULL:
        return 0
    spin_lock(&log.lock)
    lost = log.lost
    log.lost = 0
    spin_unlock(&log.lock)
    return lost


# A guess without the lock, for who would look again later.
cdef bint slab_log_waiting(const machine* m) noexcept nogil:
    cdef slab_log* log = log_of(m)
    return log != NULL and log.count != 0


cdef uint64_t jiffies() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC_COARSE, &now)
    return <uint64_t>now.tv_sec * 1000 + <uint64_t>now.tv_nsec / 1000000
