# Counters summed over the threads' areas.  Reads only; racy while others allocate.
from libc.stdint cimport int32_t, uint64_t

from realmem.types cimport machine

# One CPU's lists of a zone: those of every thread that last ran there.
cdef struct pcp_stat:
    int32_t threads
    int32_t count               # pages in all of them
    int32_t high                # of the longest

# pgalloc and the six NUMA counters of a zone, as counts_ret[0] and counts_ret[1..6].
cdef void sum_zone_events(machine* m, int index, uint64_t* counts_ret) noexcept nogil

# The machine-wide counters, NR_VM_EVENT_ITEMS of them.
cdef void sum_vm_events(machine* m, uint64_t* events_ret) noexcept nogil

# What the lists of a zone hold, added to stats_ret[1 + cpu], [0] for threads that ran nowhere
# yet: 1 + m.nr_cpu_ids entries, zeroed by the caller.
cdef void sum_pcp_stats(machine* m, int index, pcp_stat* stats_ret) noexcept nogil

cdef struct frame_stat:
    uint64_t anon               # pages of anonymous memory
    uint64_t anon_huge          # those that a huge entry maps
    uint64_t shmem              # of shared memory's objects
    uint64_t file               # of files
    uint64_t dirty              # those of them that are not written back yet
    uint64_t mapped             # of shared memory's and files, those that a process maps
    uint64_t mlocked            # anon and shmem held in memory
    uint64_t mlocked_file       # and of files
    uint64_t active             # of anon, and
    uint64_t active_file        # of file
    uint64_t table              # page-table pages
    uint64_t slab               # of caches, and kmalloc()'s large blocks
    uint64_t slab_reclaimable   # of caches whose objects can be reclaimed

# Count a node's allocated frames by what they are used for.
# Nothing counts them as they change, so that a fault need not pay for it; free blocks are
# stepped over whole.
# Differs: Linux keeps NR_ANON_MAPPED, NR_PAGETABLE and NR_SLAB_*_B by node.
# Context: takes no lock; frames that change hands meanwhile may be missed or counted twice.
cdef void count_frames(const machine* m, int nid, frame_stat* ret) noexcept nogil
