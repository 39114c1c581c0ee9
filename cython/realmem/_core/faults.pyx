# cython: language_level=3
"""
The handler as Python sees it: installing it, and raising what it recorded.

A forbidden raw access cannot raise where it happens.  The handler records it; it is raised once:
at the end of the thread's open guard on that process, else on entry to the thread's next realmem
call, else, for the main thread, at the interpreter's next check.
"""
import signal
import sys
import threading
import time
import warnings

from libc.errno cimport ENOMEM
from libc.signal cimport SIGBUS, SIGSEGV
from libc.stdint cimport int32_t, int64_t, uint64_t

from realmem._kernel.host_calls cimport gettid
from realmem._kernel.mm_types cimport (
    FAULT_HOST, FAULT_OOM, FAULT_SIGBUS, NR_FAULT_RECORDS, RECORD_BUSY, RECORD_FREE, RECORD_READY,
    fault_record, mm_struct,
)
from realmem._kernel.mmap cimport mm_flush_scratch
from realmem._kernel.sigsegv cimport (
    handler, handler_install, handler_install_bus, handler_owns, handler_retake, handler_save,
    handler_uninstall,
)
from realmem._kernel.run_host cimport run_host_fork_begins, run_host_fork_ends
from realmem._kernel.spare cimport spare_after_fork
from realmem._kernel.window cimport windows_after_fork
from realmem.compiler cimport SEQ_CST, atomic_add_return, load_int, peek_int, store_int
from realmem.types cimport GFP_HIGHUSER_MOVABLE

from realmem.errors import BusError, HostError, OutOfMemory, SegmentationFault
from realmem.layout import GFP

cdef extern from "<pthread.h>" nogil:
    int pthread_atfork(void (*prepare)() noexcept nogil, void (*parent)() noexcept nogil,
                       void (*child)() noexcept nogil)
cdef extern from "Python.h" nogil:
    int PyErr_SetInterruptEx(int signum)    # async-signal-safe, and needs no GIL

ACCESS_NAMES = ("read", "write", "exec")

cdef bint at_fork_registered = False
cdef int64_t installing = 0                 # host thread id; 0 when nobody is
cdef object python_handler_before = None    # what signal.signal() gave back
cdef dict open_guards = {}                  # mm id -> host thread ids, innermost last
cdef dict owners = {}                       # mm id -> weak reference to its realmem.Machine


# ---- installing -------------------------------------------------------------

def install():
    """
    Take SIGSEGV: raw accesses to windows are served from now on.

    Who has it now gets the faults that are not ours.  Python's own handler is set as well, in
    the main thread, so that a forbidden access can interrupt it.
    """
    global at_fork_registered, installing
    if not at_fork_registered:
        # Everything the handler runs is imported; the hook's state is static.
        if pthread_atfork(run_host_fork_begins, run_host_fork_ends, after_fork_child) != 0:
            raise HostError(ENOMEM, "pthread_atfork refuses")
        at_fork_registered = True
    # Who saved the action after another thread's listen() would chain to Python for ever.
    while installing and installing != gettid():
        time.sleep(0.001)
    if handler.installed or installing:
        return
    installing = gettid()
    try:
        taken(handler_save(), SIGSEGV)
        listen()
        taken(handler_install(), SIGSEGV)
    finally:
        installing = 0


def install_bus():
    """Take SIGBUS as well, by which userfaultfd tells of accesses; install() was called."""
    if not handler.bus:
        taken(handler_install_bus(), SIGBUS)


cdef int taken(int rc, int sig) except -1:
    if rc != 0:
        raise HostError(-rc, f"sigaction({signal.Signals(sig).name}) refuses")
    return 0


def uninstall():
    """Give SIGSEGV back to whom it was taken from; raw accesses to windows kill from now on."""
    global python_handler_before
    if not handler.installed:
        return
    if handler.notify != NULL:
        handler.notify = NULL
        signal.signal(signal.SIGSEGV, python_handler_before or signal.SIG_DFL)
        python_handler_before = None
    handler_uninstall()


def installed():
    """Whether the handler was installed and still has SIGSEGV."""
    return bool(handler.installed and handler_owns())


# Let the handler interrupt the main thread.  signal.signal() works there only, and takes the
# C action too: the caller installs ours again.
cdef bint listen() except -1:
    global python_handler_before
    if threading.current_thread() is not threading.main_thread():
        return False
    python_handler_before = signal.signal(signal.SIGSEGV, on_interrupt)
    handler.main_tid = gettid()
    handler.notify = interrupt_main
    return True


cdef int check_owner() except -1:
    if not handler.installed:
        return 0
    if not handler_owns():
        taken = "SIGSEGV or SIGBUS" if handler.bus else "SIGSEGV"
        handler_retake()
        warnings.warn(
            f"{taken} was taken from realmem (by faulthandler.enable(), perhaps); realmem took it "
            "back and passes faults that are not its own on. Enable faulthandler before the "
            "first spawn()", RuntimeWarning, stacklevel=levels_to_caller())
    elif handler.notify == NULL and listen():
        handler_install()
    return 0


# warnings.warn()'s stacklevel of the line that called the package.
cdef int levels_to_caller() except -1:
    cdef int level = 1
    frame = sys._getframe()
    while frame.f_back is not None and is_own(frame):
        frame = frame.f_back
        level += 1
    return level


cdef bint is_own(frame) except -1:
    name = frame.f_globals.get("__name__")
    return isinstance(name, str) and name.partition(".")[0] == "realmem"


cdef void interrupt_main() noexcept nogil:
    PyErr_SetInterruptEx(SIGSEGV)


cdef void after_fork_child() noexcept nogil:
    global installing
    cdef int i
    installing = 0
    run_host_fork_ends()
    windows_after_fork()
    spare_after_fork()
    for i in range(NR_FAULT_RECORDS):
        handler.records[i].state = RECORD_FREE
    handler.nr_pending = 0
    if handler.main_tid != 0:
        handler.main_tid = gettid()     # the thread that forked is the child's main thread


# ---- raising ----------------------------------------------------------------

cdef int register(uint64_t mm_id, object owner) except -1:
    owners[mm_id] = owner
    return 0


cdef int forget(uint64_t mm_id) except -1:
    owners.pop(mm_id, None)
    return 0


cdef object out_of_memory(uint64_t mm_id, str message):
    owner = owners.get(mm_id)
    machine = None if owner is None else owner()
    return OutOfMemory(message, order=0, gfp=GFP(GFP_HIGHUSER_MOVABLE),
                       report=None if machine is None else machine.show_mem)


cdef int raise_pending() except -1:
    if peek_int(&handler.nr_pending) != 0:
        raise_first(take_for_thread())
    return 0


def check_pending():
    """
    Do nothing, unless this thread made a forbidden raw access that was not reported yet.

    :raises SegmentationFault: it did.
    """
    raise_pending()


def on_interrupt(signum, frame):
    """Raise, in the main thread, what the handler recorded for it."""
    raise_pending()


cdef class Guard:
    """
    A region of code whose forbidden raw accesses to one process are raised at its end.

    :param mm_id: the address space.
    """

    cdef uint64_t mm_id
    cdef list entered               # by which threads

    def __cinit__(self, mm_id):
        self.mm_id = mm_id
        self.entered = []

    def __enter__(self):
        raise_pending()
        check_owner()
        self.entered.append(gettid())
        open_guards.setdefault(self.mm_id, []).append(self.entered[-1])
        return self

    def __exit__(self, kind, value, traceback):
        cdef int64_t tid = self.leave()
        cdef list taken = []
        try:
            # While the guard is open, so that on_interrupt() leaves the records to it.
            if peek_int(&handler.nr_pending) != 0:
                taken = take_for_guard(self.mm_id, tid)
        finally:
            tids = open_guards.get(self.mm_id)
            if tids is not None and tid in tids:    # a forked child's copy may be gone
                tids.remove(tid)
                if not tids:
                    del open_guards[self.mm_id]
        if kind is None or issubclass(kind, Exception):
            raise_first(taken)
        elif taken:
            chain(value, first_of(taken))
        return False

    # The thread that leaves: the calling one, unless another entered for it.
    cdef int64_t leave(self):
        cdef int64_t tid = gettid()
        cdef Py_ssize_t i
        for i in range(len(self.entered) - 1, -1, -1):
            if self.entered[i] == tid:
                return self.entered.pop(i)
        return self.entered.pop()


cdef class Ending:
    """
    Base of context managers whose end is reached, though a signal may interrupt it.

    What the handler has for the main thread interrupts the first Python function that is called
    after the access: a ``__exit__`` of Python's, before its first line.  So they have a
    ``leave()`` instead: what is to be done at the end.  If it is interrupted it is called again.
    """

    def __exit__(self, *ignored):
        try:
            self.leave()
        except BaseException:
            self.leave()
            raise


# Records that are this thread's by its own doing or, in the main thread, by default; those for
# which a guard is open wait for its end.
cdef list take_for_thread():
    cdef int64_t tid = gettid()
    cdef bint is_main = tid == handler.main_tid
    cdef fault_record* r
    cdef int i
    cdef list taken = []
    known = sys._current_frames() if is_main else {}
    for i in range(NR_FAULT_RECORDS):
        r = &handler.records[i]
        if load_int(&r.state) != RECORD_READY:
            continue
        guards = open_guards.get(r.mm_id, ())
        if r.tid == tid:
            if tid not in guards:
                taken.append(take(r))
        elif is_main and not guards and r.ident not in known:
            taken.append(take(r))
    return taken


cdef list take_for_guard(uint64_t mm_id, int64_t tid):
    cdef fault_record* r
    cdef int i
    cdef list taken = []
    known = sys._current_frames()
    for i in range(NR_FAULT_RECORDS):
        r = &handler.records[i]
        if load_int(&r.state) == RECORD_READY and r.mm_id == mm_id:
            if r.tid == tid or r.ident not in known:
                taken.append(take(r))
    return taken


# Take a record out of the ring, as (seq, exception).
cdef tuple take(fault_record* r):
    cdef uint64_t seq = r.seq
    cdef mm_struct* mm = r.mm
    cdef uint64_t mm_id = r.mm_id
    store_int(&r.state, RECORD_BUSY)    # ours: exceptions are made by code that signals interrupt
    try:
        error = report_of(r)
    except BaseException:
        store_int(&r.state, RECORD_READY)       # for the next call
        raise
    store_int(&r.state, RECORD_FREE)
    atomic_add_return(<int32_t*>&handler.nr_pending, -1, SEQ_CST)
    with nogil:                         # the next access there faults again
        mm_flush_scratch(mm, mm_id)
    return seq, error


cdef object report_of(const fault_record* r):
    access = ACCESS_NAMES[r.access]
    if r.code == FAULT_OOM:
        return out_of_memory(
            r.mm_id, f"pid {r.pid}: {access} fault at {r.address:#x} found no frame")
    if r.code == FAULT_HOST:
        return HostError(ENOMEM, f"pid {r.pid}: the host refuses to map {r.address:#x}; "
                         "see vm.max_map_count")
    if r.code == FAULT_SIGBUS:
        return BusError(r.address, r.pid)
    return SegmentationFault(r.address, access, r.code, r.pid)


cdef int raise_first(list taken) except -1:
    if taken:
        raise first_of(taken)
    return 0


cdef object first_of(list taken):
    return min(taken, key=by_seq)[1]


# What ends the program, or a generator, must get out of a guard; it carries the report along.
cdef int chain(value, error) except -1:
    seen = set()                        # users may tie a knot
    while value.__context__ is not None and id(value) not in seen:
        seen.add(id(value))
        value = value.__context__
    if value is not error and value.__context__ is None:
        value.__context__ = error
    return 0


def by_seq(entry):
    """Order records by when they were made."""
    return entry[0]


def lost():
    """Forbidden accesses that found no room to be recorded."""
    return handler.nr_lost
