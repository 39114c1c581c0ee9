"""Blocks that are kept from an allocator under test, to give its free lists the shape of use."""
from libc.stdint cimport uint8_t, uint64_t
from libc.stdlib cimport free

from realmem._bench.target cimport Allocator, give, take, touched_block


cdef class Hold:
    """
    Blocks that are kept from an allocator, to give its free lists the shape of use.

    :param allocator: whom to take them from.
    """

    cdef Allocator allocator
    cdef uint64_t* blocks
    cdef uint64_t n

    def __cinit__(self, Allocator allocator not None):
        self.allocator = allocator

    def age(self, uint64_t pages, keep):
        """
        Take ``pages`` single pages, give back those that ``keep`` is false for, and drain.

        :param pages: how many to take.
        :param keep: bytes, one a page in the order taken: 1 to keep it.
        :raises MemoryError: it has not so many.
        """
        cdef uint64_t i
        cdef uint64_t kept = 0
        cdef const uint8_t[::1] mask = keep
        self.release()
        if <uint64_t>mask.shape[0] != pages:
            raise ValueError("keep must have one byte a page")
        self.allocator.ready()
        self.blocks = <uint64_t*>touched_block(pages * sizeof(uint64_t))
        if self.blocks == NULL:
            raise MemoryError
        for i in range(pages):
            self.blocks[i] = take(self.allocator.t, self.allocator.t.kind, 0, 0)
            if self.blocks[i] == 0:
                self.n = i
                self.release()
                raise MemoryError(f"{self.allocator.name}: {i} of {pages} pages")
        for i in range(pages):
            if mask[i]:
                self.blocks[kept] = self.blocks[i]
                kept += 1
            else:
                give(self.allocator.t, self.allocator.t.kind, self.blocks[i], 0, 0)
        self.n = kept
        self.allocator.drain()

    def release(self):
        """Give everything back."""
        cdef uint64_t i
        if self.blocks == NULL:
            return
        self.allocator.ready()
        for i in range(self.n):
            give(self.allocator.t, self.allocator.t.kind, self.blocks[i], 0, 0)
        free(self.blocks)
        self.blocks = NULL
        self.n = 0
        self.allocator.drain()

    def __dealloc__(self):
        free(self.blocks)
