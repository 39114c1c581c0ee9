# cython: language_level=3
"""The software MMU: accesses of a process without signals or host mappings."""
cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t, uint64_t

from realmem._core.space cimport Space
from realmem._kernel.access cimport mm_access, mm_access_all, mm_fill, mm_touch
from realmem._kernel.mm_types cimport FAULT_OK


@cython.no_gc_clear
cdef class SoftMmu(Space):
    """An address space that software reads and writes, beside the host's loads and stores."""

    def access(self, uint64_t addr, data, uint64_t n):
        """
        Read ``n`` bytes (``data`` is None) or write ``data`` by the software MMU.

        :return: the bytes read.
        :raises SegmentationFault: at the first address it may not touch; ``done`` bytes before.
        :raises OutOfMemory: a fault found no frame.
        """
        cdef uint64_t done = 0
        cdef int rc
        cdef const unsigned char[::1] source
        cdef char* buffer
        cdef bint write = data is not None
        self.alive()
        if n == 0:
            return b""
        if write:
            # A window's own view would fault under the lock that its fault waits for.
            if type(data) is not bytes:
                data = bytes(data)
                self.alive()
            source = data
            buffer = <char*>&source[0]
            result = None
        else:
            result = PyBytes_FromStringAndSize(NULL, n)
            buffer = PyBytes_AS_STRING(result)
        with nogil:
            rc = mm_access(self.mm, self.id, addr, buffer, n, write, &done)
        self.raise_fault(rc, addr + done, write, done)
        return result

    def touch(self, uint64_t addr, uint64_t n, bint write):
        """
        Access one byte of each page of a range by the software MMU, changing none.

        :raises SegmentationFault: at the first address it may not touch.
        """
        cdef uint64_t done = 0
        cdef int rc
        self.alive()
        with nogil:
            rc = mm_touch(self.mm, self.id, addr, n, write, &done)
        self.raise_fault(rc, addr + done, write, done)

    def access_all(self, const uint64_t[::1] addresses not None, const uint8_t[::1] writes):
        """
        Access one byte at each address by the software MMU, changing none.

        :param addresses: shape (n,).
        :param writes: shape (n,): 0 is a read; or None: all are reads.
        :raises SegmentationFault: at the first that may not be; ``done`` came before it.
        """
        cdef uint64_t n = addresses.shape[0]
        cdef uint64_t done = 0
        cdef const uint8_t* kinds = NULL
        cdef int rc
        self.alive()
        if n == 0:
            return
        if writes is not None:
            if <uint64_t>writes.shape[0] != n:
                raise ValueError(f"{n} addresses, {writes.shape[0]} kinds of access")
            kinds = &writes[0]
        with nogil:
            rc = mm_access_all(self.mm, self.id, &addresses[0], kinds, n, &done)
        if rc != FAULT_OK:
            self.raise_fault(rc, addresses[done] if done < n else 0,
                             kinds != NULL and done < n and kinds[done] != 0, done)

    def fill(self, uint64_t addr, uint64_t n, uint8_t byte):
        """
        Set every byte of a range by the software MMU.

        :raises SegmentationFault: at the first address it may not write.
        """
        cdef uint64_t done = 0
        cdef int rc
        self.alive()
        with nogil:
            rc = mm_fill(self.mm, self.id, addr, n, byte, &done)
        self.raise_fault(rc, addr + done, True, done)
