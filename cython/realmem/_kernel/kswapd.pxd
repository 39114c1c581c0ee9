# What a node's background reclaim does.  Its thread is native, Python does not know it
# (_core/kswapd_threads.pyx).  Compare mm/vmscan.c:kswapd(), balance_pgdat().
from realmem._kernel.mm_types cimport kswapd_state
from realmem.types cimport machine, zone

# A thread's whole life.  data: its kswapd_state.  Returns: NULL, once told to stop.
cdef void* kswapd(void* data) noexcept nogil
# Have each node of the list looked after; what machine.wake_kswapd is set to.
cdef void wake_kswapds(machine* m, zone** zonelist) noexcept nogil
# Have its thread end soon; who joins it waits for that.
cdef void wake_to_stop(kswapd_state* state) noexcept nogil
