# The SIGSEGV handler: raw loads and stores in windows arrive here.
from libc.stdint cimport int64_t, uint64_t

from realmem._kernel.mm_types cimport fault_record

cdef struct handler_state:
    int installed               # writer: install and uninstall, with the GIL
    int nr_pending              # records not yet raised; atomic
    int64_t nr_lost             # forbidden accesses past the ring's end; atomic
    uint64_t seq                # atomic
    int64_t main_tid            # host thread id of Python's main thread; 0 when unknown
    # Asks the interpreter's main thread to look at the records: PyErr_SetInterruptEx, set by
    # the Python side, since nothing here may name it.  Async-signal-safe.
    void (*notify)() noexcept nogil
    fault_record records[512]   # NR_FAULT_RECORDS
    int bus                     # installed for SIGBUS as well
cdef handler_state handler

# Remember who has SIGSEGV now: faults that are not ours go there.  To be called before
# Python's own signal.signal() takes it.
cdef int handler_save() noexcept nogil
# Take SIGSEGV; whoever has it now is not asked.
# Returns: 0 or -errno, as do the others.
cdef int handler_install() noexcept nogil
# Take SIGBUS as well, and whoever has it gets what is not ours.
cdef int handler_install_bus() noexcept nogil
# Take it back from one who took it later, and chain to that one from now on.
cdef int handler_retake() noexcept nogil
# Give SIGSEGV back to whom handler_save() saw.
cdef int handler_uninstall() noexcept nogil
# Whether SIGSEGV is still ours.
cdef bint handler_owns() noexcept nogil
# Time n signals that bring nothing, out and back, in cycles: what every raw fault pays before
# and after its service.  Preconditions: the handler is installed, SIGSEGV is not blocked, the
# GIL is held (one at a time).
# Returns: how many were timed.
cdef int handler_probe(uint64_t* samples, int n) noexcept nogil
