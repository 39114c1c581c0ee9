# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
# cython: initializedcheck=False, nonecheck=False, profile=False, linetrace=False
from libc.errno cimport EINTR, EIO
from libc.stdint cimport int64_t, uint64_t

from realmem._kernel.mm_types cimport swap_store
from realmem.types cimport PAGE_SHIFT, PAGE_SIZE

cdef extern from *:
    """
    #include <errno.h>
    #include <stdint.h>
    #include <unistd.h>
    static int64_t rm_swap_write(int fd, const void *from, uint64_t n, uint64_t at)
    {
        int saved = errno;
        int64_t rc = pwrite(fd, from, n, (off_t)at);
        if (rc < 0)
            rc = -errno;
        errno = saved;
        return rc;
    }
    static int64_t rm_swap_read(int fd, void *to, uint64_t n, uint64_t at)
    {
        int saved = errno;
        int64_t rc = pread(fd, to, n, (off_t)at);
        if (rc < 0)
            rc = -errno;
        errno = saved;
        return rc;
    }
    """
    int64_t swap_write "rm_swap_write"(int fd, const void* bytes, uint64_t n,
                                       uint64_t at) noexcept nogil
    int64_t swap_read "rm_swap_read"(int fd, void* bytes, uint64_t n, uint64_t at) noexcept nogil


cdef void file_store(swap_store* store_ret, int fd) noexcept nogil:
    store_ret.write = write
    store_ret.read = read
    store_ret.data = <void*><int64_t>fd


# What is written in part is not written; a file that became shorter has lost pages.
cdef int write(void* data, uint64_t slot, const void* bytes) noexcept nogil:
    cdef uint64_t done = 0
    cdef int64_t rc
    while done < PAGE_SIZE:
        rc = swap_write(<int><int64_t>data, <const char*>bytes + done, PAGE_SIZE - done,
                        (slot << PAGE_SHIFT) + done)
        if rc == 0:
            return -EIO
        if rc > 0:
            done += <uint64_t>rc
        elif rc != -EINTR:
            return <int>rc
    return 0


cdef int read(void* data, uint64_t slot, void* bytes) noexcept nogil:
    cdef uint64_t done = 0
    cdef int64_t rc
    while done < PAGE_SIZE:
        rc = swap_read(<int><int64_t>data, <char*>bytes + done, PAGE_SIZE - done,
                       (slot << PAGE_SHIFT) + done)
        if rc == 0:
            return -EIO
        if rc > 0:
            done += <uint64_t>rc
        elif rc != -EINTR:
            return <int>rc
    return 0
