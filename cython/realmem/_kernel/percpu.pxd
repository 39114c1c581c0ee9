# Per-thread areas (types.pxd: cpu_area).  Signal-safe unless a line says otherwise.
from libc.stdint cimport int64_t, uint64_t

from realmem.compiler cimport barrier, peek_int, poke_int, spin_unlock, unlikely
from realmem.types cimport cpu_area, machine

# The calling thread's last used area is one thread-local load away, in every extension:
# each keeps the distance of that variable from the thread pointer, which is the same in all
# threads.  A module that enters areas calls attach_areas() when it is loaded.
cdef extern from *:
    """
    static long rm_area_offset;
    #ifdef RM_SEG_FS                        /* spares a load */
    #define rm_this_area() ((void *)*(void *__seg_fs *)rm_area_offset)
    #else
    #define rm_this_area() \\
        (*(void **)((char *)__builtin_thread_pointer() + rm_area_offset))
    #endif
    """
    long area_offset "rm_area_offset"
    cpu_area* current_area "rm_this_area"() noexcept nogil

cdef long this_area_offset

cdef inline void attach_areas() noexcept nogil:
    global area_offset
    area_offset = this_area_offset

# Begin and end working on the calling thread's data for m.
cdef inline cpu_area* area_enter(machine* m) noexcept nogil:
    cdef cpu_area* area = current_area()
    if unlikely(area.machine != m):
        area = area_find(m)
    poke_int(&area.busy, 1)
    barrier()
    if unlikely(peek_int(&area.stolen)):
        area_enter_locked(area)
    return area

cdef inline void area_exit(cpu_area* area) noexcept nogil:
    barrier()
    if unlikely(area.locked):
        area.locked = 0
        spin_unlock(&area.lock)
    else:
        poke_int(&area.busy, 0)

# The parts of area_enter that are seldom needed.  area_find may map memory: not for the
# handler, which borrows an area first.
cdef cpu_area* area_find(machine* m) noexcept nogil
cdef void area_enter_locked(cpu_area* area) noexcept nogil

# Note which CPU, and so which node, the thread runs on.
cdef void area_set_cpu(cpu_area* area) noexcept nogil

# Until it is undone (nid -1), the calling thread works as a CPU of another node would: what
# takes memory without naming a node takes that one's, and counts as local there.
cdef void area_run_on(machine* m, int nid) noexcept nogil

# The node that the calling thread is on, or acts for.
cdef int this_node(const machine* m) noexcept nogil

# What the slab allocator wants to know, being above this: inside its area, a thread has come
# to a CPU of another node; outside, it ends.
cdef void set_slab_hooks(void (*new_node)(machine* m, cpu_area* area) noexcept nogil,
                         void (*end)(machine* m, cpu_area* area) noexcept nogil) noexcept nogil

# Empty every per-CPU list of m into the free areas; returns pages moved.
cdef int64_t drain_all_pages(machine* m) noexcept nogil

# The calling thread's data for m; made on first use.  May map memory: not signal-safe
# (the handler uses m.shared_area instead).
cdef cpu_area* get_cpu_area(machine* m) noexcept nogil

# The same for the fault handler, which may meet a thread for the first time: between the
# two, the thread uses its own area of m if it has one, the shared one otherwise.
# return_area takes what borrow_area returned.  Signal-safe.
cdef cpu_area* borrow_area(machine* m) noexcept nogil
cdef void return_area(cpu_area* before) noexcept nogil

# Counts os.fork: a face whose generation differs lives in a child that must not use it.
cdef int fork_generation

# Add to the calling thread's event counter (VM events of types.pxd).
cdef void count_vm_event(machine* m, int event, uint64_t delta) noexcept nogil

# Stop and restart every owner of a per-CPU list (for machine.check()).
cdef void freeze_cpu_areas(machine* m) noexcept nogil
cdef void thaw_cpu_areas(machine* m) noexcept nogil

# Machine life: register before the first allocation (0 or -ENOMEM); forget before the
# memory goes.
cdef int percpu_init(machine* m) noexcept nogil
cdef void percpu_exit(machine* m) noexcept nogil
