# cython: language_level=3
"""The life of address spaces, their windows in the host's, and views of them."""
cimport cython
from cpython.buffer cimport PyBuffer_FillInfo
from libc.errno cimport ENOMEM, ESRCH
from libc.stdint cimport uint64_t

from realmem._core.faults cimport check_owner, forget, out_of_memory, register
from realmem._core.mmu cimport Mmu
from realmem._kernel.mm_types cimport (
    FAULT_ACCERR, FAULT_HOST, FAULT_MAPERR, FAULT_OOM, FAULT_SIGBUS, window, window_of,
)
from realmem._kernel.mmap cimport mm_exit
from realmem._kernel.percpu cimport get_cpu_area
from realmem._kernel.window cimport mm_cover, mm_create, window_reap, windows
from realmem.compiler cimport peek64

from realmem.errors import AtomicContextError, BusError, HostError, OutOfMemory, SegmentationFault
from realmem.layout import GFP


def reap():
    """Give back the windows of exited processes that no view covers any more."""
    window_reap()


def host_vmas():
    """Count the host VMAs that all windows take, by our own account."""
    return peek64(&windows.host_vmas)


@cython.no_gc_clear
cdef class Space:
    """
    The life of an address space: its windows, views of them, its end.

    :param mmu: the machine's.
    :param pid: for reports.
    :param nid: node that software accesses allocate from; -1 is the calling CPU's.
    :param length: bytes of host address space, a power of two from 1 GiB; halved while the host
        refuses.
    :raises OutOfMemory: no memory for it and its page directory.
    :raises HostError: not even 1 GiB of host address space.
    """

    def __cinit__(self, Mmu mmu not None, int pid, int nid, uint64_t length, *rest):
        cdef int error = 0
        cdef int turn = 0
        mmu.core.alive()
        self.mmu = mmu
        self.pid = pid
        self.ended = True
        while True:
            error = 0
            self.mm = mm_create(&mmu.u, pid, nid, &length, &error)
            if self.mm != NULL or error != ENOMEM or not mmu.make_room(turn):
                break
            turn += 1
        if self.mm == NULL:
            if error == ENOMEM:
                raise OutOfMemory("no memory for a process and its page directory",
                                  gfp=GFP.KERNEL)
            raise HostError(ENOMEM, "the host has no address space left; see ulimit -v")
        self.id = self.mm.id
        register(self.id, mmu.core.owner)
        self.ended = False
        if error != 0:
            self.exit()
            raise HostError(ENOMEM, "no 1 GiB of host address space for a window; see ulimit -v")
        self.user_start = self.mm.windows.user_start
        self.length = length

    def __dealloc__(self):
        forget(self.id)
        # No bytecode runs while mm.lock is held, so that this cannot wait for itself.
        if not self.ended and self.mmu is not None and self.mmu.is_ours():
            mm_exit(self.mm, self.id)

    cdef int alive(self) except -1:
        self.mmu.core.enter()
        if self.ended:
            raise ProcessLookupError(ESRCH, f"process {self.pid} has exited")
        if self.mmu.core.atomic_contexts and get_cpu_area(self.mmu.core.m).atomic_depth > 0:
            raise AtomicContextError("system calls may sleep: not inside atomic_context()")
        if self.mmu.inodes:
            self.mmu.look_at_files()
        return 0

    def check_alive(self):
        """
        Do nothing on an address space that can be used.

        :raises ProcessLookupError: it was ended.
        :raises ValueError: its machine is closed or inherited.
        """
        self.alive()

    def exit(self, dict live=None):
        """
        Give everything back; views that are left answer SEGV_MAPERR from now on.

        :param live: processes by pid; this one goes from it in the same step.
        """
        if not self.ended:
            self.ended = True
            with nogil:
                mm_exit(self.mm, self.id)
            if live is not None:
                live.pop(self.pid, None)

    # ---- windows ----

    def cover(self, uint64_t start, uint64_t end):
        """
        Make windows for what of [start, end) has none.

        :raises OSError: ENOMEM, the host refuses the address space.
        """
        cdef int rc
        self.alive()
        rc = mm_cover(self.mm, self.id, start, end)
        self.check_rc(rc)

    @property
    def windows(self):
        """List of (first address, bytes), the first window first."""
        cdef int i
        return [(self.mm.windows[i].user_start, self.mm.windows[i].length)
                for i in range(self.mm.nr_windows)]

    cdef window* window_at(self, uint64_t addr, uint64_t length) except NULL:
        cdef window* w = window_of(self.mm, addr)
        if w == NULL or length > w.length or addr - w.user_start > w.length - length:
            raise ValueError(f"[{addr:#x}, {addr + length:#x}) is not all in one window of "
                             f"process {self.pid}")
        return w

    def host_address(self, uint64_t addr):
        """
        Give the host address of one of the process's own.

        :raises ValueError: it is in no window.
        """
        cdef window* w
        self.alive()
        check_owner()
        w = self.window_at(addr, 1)
        return w.host_base + (addr - w.user_start)

    def view(self, uint64_t addr, uint64_t length):
        """
        Give a memoryview of a live window.

        :raises ValueError: the range is not all in one window.
        """
        self.alive()
        check_owner()
        self.window_at(addr, length)
        return memoryview(WindowBuffer(self, addr, length))

    @property
    def exports(self):
        """Live buffers over the window."""
        return self.mm.exports if self.mm.id == self.id else 0

    @property
    def host_vmas(self):
        """Host VMAs that its windows take."""
        self.alive()
        return self.mm.host_edges + self.mm.nr_windows

    @property
    def nr_runs(self):
        """Page tables that have a run of frames."""
        self.alive()
        return self.mm.nr_runs

    # ---- answers of the kernel side ----

    cdef int check_rc(self, int rc) except -1:
        if rc == -ESRCH:
            raise ProcessLookupError(ESRCH, f"process {self.pid} has exited")
        if rc == -ENOMEM:
            raise OSError(ENOMEM, "cannot allocate memory")
        if rc < 0:
            raise OSError(-rc, "no huge page")
        return 0

    cdef int raise_fault(self, int rc, uint64_t addr, bint write, uint64_t done) except -1:
        access = "write" if write else "read"
        if rc == FAULT_MAPERR or rc == FAULT_ACCERR:
            raise SegmentationFault(addr, access, rc, self.pid, done)
        if rc == FAULT_OOM:
            raise out_of_memory(
                self.id, f"pid {self.pid}: {access} fault at {addr:#x} found no frame")
        if rc == FAULT_SIGBUS:
            raise BusError(addr, self.pid, done)
        if rc == FAULT_HOST:
            raise HostError(ENOMEM, f"pid {self.pid}: the host refuses to map {addr:#x}")
        return self.check_rc(rc)


@cython.no_gc_clear              # what its release needs must still be there
cdef class WindowBuffer:
    """
    Buffer of a range of a live window.

    :param space: whose window; kept alive, and its window kept in place while views live.
    """

    cdef Space space
    cdef char* start
    cdef Py_ssize_t length

    def __cinit__(self, Space space, uint64_t addr, uint64_t length):
        cdef window* w = space.window_at(addr, length)
        self.space = space
        self.start = <char*>(w.host_base + (addr - w.user_start))
        self.length = length

    def __getbuffer__(self, Py_buffer* buffer, int flags):
        if self.space.mm.id != self.space.id:
            raise ProcessLookupError(ESRCH, "the window is gone")
        PyBuffer_FillInfo(buffer, self, self.start, self.length, False, flags)
        self.space.mm.exports += 1

    def __releasebuffer__(self, Py_buffer* buffer):
        self.space.mm.exports -= 1
