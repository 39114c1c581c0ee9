# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
# cython: initializedcheck=False, nonecheck=False, profile=False, linetrace=False
# Per-thread areas: found, entered, stolen, given up when their thread or machine ends.
# The protocol stands at types.pxd:cpu_area.
from libc.errno cimport ENOMEM
from libc.stdint cimport int64_t, uint64_t

from realmem._kernel.lock_order cimport LOCK_AREAS, check_spinlock
from realmem._kernel.pcp cimport (
    area_fold, area_free, area_new, area_reset, drain_area, forget_allocs, forget_memos,
)
from realmem.compiler cimport (
    SEQ_CST, atomic_xchg, load_int, spin_lock, spin_unlock, spinlock, store_int, this_cpu_id,
)
from realmem.linux cimport (
    MEMBARRIER_CMD_PRIVATE_EXPEDITED, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, membarrier,
    sched_yield,
)
from realmem.types cimport (
    AREA_MAGAZINES, MAX_NR_ZONES, PAGE_SHIFT, ZONE_MOVABLE, cpu_area, machine, node, per_cpu_pages,
    zone,
)

cdef extern from *:
    """
    #include <pthread.h>
    /* The area that belongs to no machine stands first, so that entering needs no NULL test. */
    static char rm_boot_area[4096] __attribute__((aligned(64)));
    static __thread void *rm_current_area = rm_boot_area;
    static __thread void *rm_thread_areas;      /* all areas of this thread */
    static pthread_key_t rm_area_key;
    #ifdef __SANITIZE_THREAD__      /* sees locks and atomic operations, not membarrier */
    #define RM_RACE_DETECTOR 1
    #else
    #define RM_RACE_DETECTOR 0
    #endif
    static long rm_offset_of_current(void)
    { return (char *)&rm_current_area - (char *)__builtin_thread_pointer(); }
    """
    cpu_area* this_area "rm_current_area"
    cpu_area* thread_areas "rm_thread_areas"
    cpu_area* boot_area "((void *)rm_boot_area)"
    long offset_of_current "rm_offset_of_current"() noexcept nogil
    bint race_detector "RM_RACE_DETECTOR"
    ctypedef unsigned int pthread_key_t
    pthread_key_t area_key "rm_area_key"
    int pthread_key_create(pthread_key_t* key, void (*destructor)(void*) noexcept nogil) nogil
    int pthread_setspecific(pthread_key_t key, const void* value) nogil
    int pthread_atfork(void (*prepare)() noexcept nogil, void (*parent)() noexcept nogil,
                       void (*child)() noexcept nogil) nogil

# Set where membarrier is refused, or a race detector must see locks: every area is then
# entered by its lock.
cdef int always_locked = 0
cdef uint64_t machine_ids = 0
# Orders the end of threads against the end of machines.
cdef spinlock registry_lock
cdef void (*slab_new_node)(machine* m, cpu_area* area) noexcept nogil
cdef void (*slab_thread_ends)(machine* m, cpu_area* area) noexcept nogil


cdef void no_slab(machine* m, cpu_area* area) noexcept nogil:
    pass


cdef void area_enter_locked(cpu_area* area) noexcept nogil:
    store_int(&area.busy, 0)
    spin_lock(&area.lock)
    area.locked = 1


cdef void area_set_cpu(cpu_area* area) noexcept nogil:
    cdef machine* m = area.machine
    cdef int cpu = this_cpu_id()
    cdef int nid = m.cpu_to_node[cpu] if 0 <= cpu < m.nr_cpu_ids else m.cpu_to_node[0]
    area.cpu = cpu
    if area.run_on > 0:
        nid = <int>area.run_on - 1
    forget_allocs(area)
    if nid != area.nid or area.node_bytes == 0:
        area_set_node(m, area, nid)


cdef void area_run_on(machine* m, int nid) noexcept nogil:
    cdef cpu_area* area = area_enter(m)
    # The shared area, for want of host memory, is not one thread's to change.
    if area != m.shared_area and area.run_on != nid + 1:
        area.run_on = nid + 1
        area_set_cpu(area)
    area_exit(area)


cdef int this_node(const machine* m) noexcept nogil:
    cdef const cpu_area* area = this_area
    cdef int cpu
    if area.machine == m and area.run_on > 0:
        return <int>area.run_on - 1
    cpu = this_cpu_id()
    return m.cpu_to_node[cpu if 0 <= cpu < m.nr_cpu_ids else 0]


cdef void area_set_node(machine* m, cpu_area* area, int nid) noexcept nogil:
    cdef zone** nearest = m.zonelists[nid * 2 * MAX_NR_ZONES + ZONE_MOVABLE]
    cdef node* n = m.nodes + (nid if nearest[0] == NULL else nearest[0].nid)
    if area.node_bytes != 0:
        slab_new_node(m, area)
    area.nid = nid
    area.mem_nid = n.nid
    area.node_start = m.direct_map + (n.start_pfn << PAGE_SHIFT)
    area.node_bytes = n.present_pages << PAGE_SHIFT


cdef void set_slab_hooks(void (*new_node)(machine* m, cpu_area* area) noexcept nogil,
                         void (*end)(machine* m, cpu_area* area) noexcept nogil) noexcept nogil:
    global slab_new_node, slab_thread_ends
    slab_new_node = new_node
    slab_thread_ends = end


# This thread's area for m, made if it has none; the shared one where the host has no
# memory for another.
cdef cpu_area* area_find(machine* m) noexcept nogil:
    global this_area, thread_areas
    cdef cpu_area* area = thread_areas
    cdef cpu_area* vacant = NULL
    while area != NULL:
        if area.machine == m:
            this_area = area
            return area
        if area.machine == NULL and area.bytes >= m.area_bytes:
            vacant = area
        area = area.thread_next
    if vacant != NULL:
        area_reset(m, vacant)
        area = vacant
    else:
        area = area_new(m)
        if area == NULL:
            return m.shared_area
        area.thread_next = thread_areas
        thread_areas = area
        pthread_setspecific(area_key, area)
    area.stolen = always_locked
    area.machine = m
    area.fast = NULL if always_locked else m
    area_set_cpu(area)
    spin_lock(&m.areas_lock)
    area.next = m.areas
    m.areas = area
    spin_unlock(&m.areas_lock)
    this_area = area
    return area


# A thread ends: its lists go back to the zones, its counts to the machines.
cdef void thread_ends(void* ignored) noexcept nogil:
    global this_area, thread_areas
    cdef cpu_area* area = thread_areas
    cdef cpu_area* next
    this_area = boot_area
    thread_areas = NULL
    while area != NULL:
        next = area.thread_next
        spin_lock(&registry_lock)       # against percpu_exit
        if area.machine != NULL:
            this_area = area
            slab_thread_ends(area.machine, area)
            if area.nr_lru_pages and area.machine.drain_lru != NULL:
                area_enter(area.machine)
                area.machine.drain_lru(area.machine, area)
                area_exit(area)
            this_area = boot_area
            area_retire(area.machine, area)
        spin_unlock(&registry_lock)
        area_free(area)
        area = next


cdef void area_retire(machine* m, cpu_area* area) noexcept nogil:
    cdef cpu_area** link
    spin_lock(&m.areas_lock)
    link = &m.areas
    while link[0] != area:
        link = &link[0].next
    link[0] = area.next
    drain_area(m, area)
    area_fold(m, area)
    area.machine = NULL
    area.fast = NULL
    spin_unlock(&m.areas_lock)


cdef cpu_area* get_cpu_area(machine* m) noexcept nogil:
    cdef cpu_area* area = this_area
    return area if area.machine == m else area_find(m)


cdef cpu_area* borrow_area(machine* m) noexcept nogil:
    global this_area
    cdef cpu_area* before = this_area
    cdef cpu_area* area = thread_areas
    if before.machine == m:
        return before
    while area != NULL and area.machine != m:
        area = area.thread_next
    this_area = area if area != NULL else m.shared_area
    return before


cdef void return_area(cpu_area* before) noexcept nogil:
    global this_area
    this_area = before


cdef void count_vm_event(machine* m, int event, uint64_t delta) noexcept nogil:
    cdef cpu_area* area = area_enter(m)
    area.events[event] += delta
    area_exit(area)


cdef void freeze_cpu_areas(machine* m) noexcept nogil:
    cdef cpu_area* area
    spin_lock(&m.areas_lock)
    area = m.areas
    while area != NULL:
        if not always_locked:
            area.fast = NULL
        atomic_xchg(&area.stolen, 1, SEQ_CST)
        area = area.next
    if not always_locked:
        membarrier(MEMBARRIER_CMD_PRIVATE_EXPEDITED)
    area = m.areas
    while area != NULL:
        # The owner saw the flag, or is between busy = 1 and busy = 0 and will leave.  The
        # shared area's owners come by the lock alone.
        while area != m.shared_area and not always_locked and load_int(&area.busy):
            sched_yield()
        spin_lock(&area.lock)
        area = area.next


cdef void thaw_cpu_areas(machine* m) noexcept nogil:
    cdef cpu_area* area = m.areas
    while area != NULL:
        if area != m.shared_area:
            forget_memos(area)
            store_int(&area.stolen, always_locked)
            if not always_locked:
                area.fast = m
        spin_unlock(&area.lock)
        area = area.next
    spin_unlock(&m.areas_lock)


cdef int64_t drain_all_pages(machine* m) noexcept nogil:
    cdef cpu_area* area
    cdef int64_t moved = 0
    freeze_cpu_areas(m)
    area = m.areas
    while area != NULL:
        moved += drain_area(m, area)
        area = area.next
    thaw_cpu_areas(m)
    return moved


# ---- life -------------------------------------------------------------------

cdef int percpu_init(machine* m) noexcept nogil:
    global machine_ids
    check_spinlock(m, &m.areas_lock, LOCK_AREAS)
    m.area_bytes = AREA_MAGAZINES + sizeof(cpu_area) + m.nr_zones * sizeof(per_cpu_pages)
    m.shared_area = area_new(m)
    if m.shared_area == NULL:
        return -ENOMEM
    m.shared_area.stolen = 1
    m.shared_area.machine = m
    m.shared_area.nid = m.cpu_to_node[0]
    m.areas = m.shared_area
    spin_lock(&registry_lock)
    machine_ids += 1
    m.id = machine_ids
    spin_unlock(&registry_lock)
    return 0


cdef void percpu_exit(machine* m) noexcept nogil:
    cdef cpu_area* area
    spin_lock(&registry_lock)
    area = m.areas
    while area != NULL:
        area.machine = NULL     # its thread reuses or frees it
        area.fast = NULL
        area = area.next
    m.areas = NULL
    spin_unlock(&registry_lock)
    area_free(m.shared_area)


cdef void after_fork_in_child() noexcept nogil:
    global fork_generation, this_area, thread_areas
    fork_generation += 1
    registry_lock.locked = 0    # a thread that the child has not got may have held it
    this_area = boot_area       # the areas were not inherited
    thread_areas = NULL
    pthread_setspecific(area_key, NULL)


this_area_offset = offset_of_current()
set_slab_hooks(no_slab, no_slab)
attach_areas()
pthread_key_create(&area_key, thread_ends)
pthread_atfork(NULL, NULL, after_fork_in_child)
if race_detector or membarrier(MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED) != 0:
    always_locked = 1
