# One thread for each node.  Compare mm/vmscan.c:kswapd_run(), kswapd_stop().
from realmem._kernel.mm_types cimport mmu

# Start each node's, asleep.  Returns: 0, or the errno of pthread_create() with none started.
cdef int kswapd_run(mmu* u) noexcept nogil
# End them all, and wait until they have.
cdef void kswapd_stop(mmu* u) noexcept nogil
# In a process that os.fork() made they do not exist.
cdef void kswapd_forget(mmu* u) noexcept nogil
