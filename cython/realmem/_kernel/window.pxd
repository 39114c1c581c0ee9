# Windows: the host address space of simulated processes, and the blocks that describe them.
from libc.stdint cimport int64_t, uint64_t

from realmem._kernel.host_calls cimport mutex
from realmem._kernel.mm_types cimport mm_struct, mmu, window

cdef enum:
    NR_HOST_GIB = 131072        # 2^47 bytes of host user space in slots of 1 GiB
    MAX_WINDOWS = 1024          # of one address space
    MAX_PINS = 1024

# Everything that the handler and ordinary code share, but for the fault records.
cdef struct window_table:
    # Which block's window covers a GiB of host addresses; read without a lock.
    # Writer: window_create and window_reap, with the GIL held.
    mm_struct* by_gib[131072]
    mutex pool_lock             # guards pool and next_id
    mm_struct* pool
    uint64_t next_id
    mm_struct* all              # every block; pushed under pool_lock, never popped
    int64_t host_vmas           # host VMAs of all windows; atomic
    uint64_t generation         # raised in each child of os.fork(); writer: the fork hook
cdef window_table windows

# The block whose window covers a host address, or NULL.  Signal-safe and lock-free: the
# caller locks the block and asks for the window itself before it believes it.
cdef mm_struct* window_lookup(uint64_t host) noexcept nogil
# NULL: the block serves another address space by now.
cdef window* window_covering_locked(const mm_struct* mm, uint64_t host) noexcept nogil

# A fresh block in state MM_LIVE with an empty VMA index, a PGD and a window of
# length_ref[0] bytes, halved down to 1 GiB while the host refuses (what it got goes back
# there).  Not for the handler.
# Returns: NULL with error_ret ENOMEM (no memory) or EAGAIN (no host address space).
cdef mm_struct* mm_create(mmu* u, int pid, int nid, uint64_t* length_ref,
                          int* error_ret) noexcept nogil

# The same for the vmalloc area: kernel addresses from `start` on, the kernel's own PGD.
# Returns: NULL with error_ret ENOMEM or EAGAIN.
cdef mm_struct* mm_create_kernel(mmu* u, uint64_t start, uint64_t* length_ref,
                                 int* error_ret) noexcept nogil

# Make windows for what of [start, end) has none: 0, -ESRCH, or -ENOMEM when the host refuses.
# Needs the GIL.  Not for the handler.
cdef int mm_cover(mm_struct* mm, uint64_t id, uint64_t start, uint64_t end) noexcept nogil

# Give back what the address space had while it lived, its PGD and VMAs excepted.
# Preconditions: mm.lock held, mm.mmu not NULL.
cdef void mm_core_put(mm_struct* mm) noexcept nogil

# Give back windows of dead blocks that no view covers; returns how many.  Needs the GIL
# (exports), never called by a finalizer.
cdef int window_reap() noexcept nogil

# In the child of os.fork(): leave nothing mapped in any window, forget every block.
cdef void windows_after_fork() noexcept nogil
