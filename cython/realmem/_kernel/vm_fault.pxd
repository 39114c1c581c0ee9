# One fault on its way (compare include/linux/mm.h:struct vm_fault), and its stop watch.
from libc.stdint cimport uint32_t, uint64_t

from realmem._kernel.arch_x86_64 cimport cycles
from realmem._kernel.mm_types cimport mm_struct, task_struct, vm_area_struct

# What a fault came to.
cdef enum:
    KIND_ZERO_PAGE = 0          # a read of untouched memory: the zero page
    KIND_ANON = 1               # a zeroed frame, or a folio of them
    KIND_COW = 2                # a copy
    KIND_REUSE = 3              # the last owner's own frame, opened for writing
    KIND_SHARED = 4             # a frame of shared memory
    KIND_REFILL = 5             # the entry allowed it: the host had lost it, or a bit was due
    KIND_SWAP = 6               # a page that was swapped out
    NR_FAULT_KINDS = 7

# Where its time went.
cdef enum:
    PART_VMA = 0                # the locks, the VMA, its anon_vma
    PART_WALK = 1               # down the page tables, those made that were missing
    PART_ALLOC = 2
    PART_ZERO_OR_COPY = 3
    PART_HOST_MAP = 4           # the entry, and the host's mapping of it
    PART_TOTAL = 5
    NR_FAULT_PARTS = 6

cdef struct vm_fault:
    mm_struct* mm
    vm_area_struct* vma
    uint64_t address
    uint64_t* pte
    int access                  # FAULT_READ, FAULT_WRITE
    bint hardware               # the host is to map it
    bint raw                    # a signal brought it
    int kind                    # KIND_*
    unsigned int order
    bint major                  # it waited for I/O
    bint timed                  # part by part
    bint late                   # ... not from the start
    uint64_t start              # cycles
    uint64_t last               # ... when the part that just ended began
    uint64_t parts[6]           # NR_FAULT_PARTS, cycles

# To read the clock and note the parts costs a software fault a third of what it takes, and a raw
# one what its page does.  So of a process's first ones each is timed, then of every TIMED_EVERY
# one, and of each kind the first TIMED_FIRST: those from when the kind is known.
cdef enum:
    TIMED_FIRST = 256
    TIMED_EVERY = 16            # a power of two

cdef inline void fault_begins(vm_fault* f, uint64_t entered) noexcept nogil:
    cdef task_struct* owner = f.mm.core.owner
    f.raw = entered != 0
    f.start = entered if f.raw else cycles()
    f.last = f.start
    if owner != NULL:           # the vmalloc area has none
        f.timed = (owner.nr_served[f.raw] < TIMED_FIRST
                   or owner.nr_served[f.raw] & (TIMED_EVERY - 1) == 0)
        owner.nr_served[f.raw] += 1

cdef inline void kind_known(vm_fault* f, int kind) noexcept nogil:
    cdef uint32_t* timed = &f.mm.core.owner.nr_timed[f.raw][kind]
    f.kind = kind
    if not f.timed and timed[0] < TIMED_FIRST:
        f.timed = True
        f.late = True
        f.last = cycles()
    timed[0] += f.timed

# What was done since the last call was this part's.
cdef inline void part_done(vm_fault* f, int part) noexcept nogil:
    cdef uint64_t now
    if not f.timed:
        return
    now = cycles()
    if now > f.last:            # the counters of two CPUs may be a little apart
        f.parts[part] += now - f.last
        f.last = now
