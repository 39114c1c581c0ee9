# cython: language_level=3
"""Frames and host mappings of a range, held while a host system call works on them."""
cimport cython
from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free

from realmem._core.faults cimport check_owner
from realmem._core.space cimport Space
from realmem._kernel.mm_types cimport FAULT_MAPERR, FAULT_OK, TASK_SIZE, window_of
from realmem._kernel.pin cimport mm_pin, mm_unpin
from realmem.types cimport PAGE_SHIFT


@cython.no_gc_clear              # what its release needs must still be there
cdef class Pin:
    """
    A context manager that holds the frames and the host's mapping of a range.

    :param space: whose.
    :param addr: first byte.
    :param length: bytes.
    :param write: whether somebody is going to write there.
    """

    cdef Space space
    cdef uint64_t addr
    cdef uint64_t length
    cdef uint64_t start             # whole pages
    cdef uint64_t end
    cdef bint write
    cdef uint64_t* pfns             # NULL while nothing is pinned
    cdef object view

    def __cinit__(self, Space space not None, uint64_t addr, uint64_t length, bint write):
        self.space = space
        self.addr = addr
        self.length = length
        self.write = write

    def __enter__(self):
        cdef uint64_t where = 0
        cdef uint64_t* pfns
        cdef int rc
        cdef Space space = self.space
        space.alive()
        check_owner()
        if self.pfns != NULL:
            raise ValueError("this pin is held already")
        if self.addr + self.length < self.addr or self.addr + self.length > TASK_SIZE:
            space.raise_fault(FAULT_MAPERR, max(self.addr, <uint64_t>TASK_SIZE), self.write, 0)
        if window_of(space.mm, self.addr) == NULL:
            space.raise_fault(FAULT_MAPERR, self.addr, self.write, 0)
        view = space.view(self.addr, self.length)
        self.start = self.addr & ~<uint64_t>4095
        self.end = (self.addr + self.length + 4095) & ~<uint64_t>4095
        pfns = <uint64_t*>calloc(((self.end - self.start) >> PAGE_SHIFT) + 1, sizeof(uint64_t))
        if pfns == NULL:
            raise MemoryError
        with nogil:
            rc = mm_pin(space.mm, space.id, self.start, self.end, self.write, pfns, &where)
        if rc != FAULT_OK:
            free(pfns)
            where = max(where, self.addr)
            space.raise_fault(rc, where, self.write, where - self.addr)
        self.pfns = pfns
        self.view = view if self.write else view.toreadonly()
        return self.view

    def __exit__(self, *what):
        self.release()
        return False

    def __dealloc__(self):
        self.release()

    cdef void release(self) noexcept:
        cdef uint64_t* pfns = self.pfns
        self.view = None
        if pfns == NULL:
            return
        self.pfns = NULL
        if self.space is not None and self.space.mmu.is_ours():
            with nogil:
                mm_unpin(self.space.mm, self.space.id, self.space.mmu.u.m, self.start, self.end,
                         pfns)
        free(pfns)
