# cython: language_level=3
"""Files as processes map them: their frames, when they are read and when written back."""
cimport cython
from libc.errno cimport EMFILE, ENFILE, ENOMEM, errno
from libc.stdint cimport int64_t, uint64_t
from posix.mman cimport (
    MAP_FAILED, MAP_PRIVATE, MAP_SHARED, PROT_READ, PROT_WRITE, mmap, munmap,
)

from realmem._core.mmu cimport Mmu
from realmem._kernel.address_space cimport (
    mapping_create, mapping_empty, mapping_invalidate, mapping_put,
)
from realmem._kernel.filemap cimport (
    filemap_dirty, filemap_look, filemap_punch, filemap_read_ahead, filemap_write_back,
)
from realmem.types cimport PAGE_SIZE

import os
import warnings

cdef uint64_t EVERYTHING = <uint64_t>-1


# A descriptor of our own: what the caller's is told later, to append as an example, is not its
# business.  Where a file may not be opened again, it is the caller's after all.
cdef int opened(int fd, int how) except -1:
    try:
        return os.open(f"/proc/self/fd/{fd}", how | os.O_CLOEXEC)
    except OSError as why:
        if why.errno in (EMFILE, ENFILE):
            raise
        return os.dup(fd)


# Some files of /proc and /sys look as others do, and cannot be mapped.
cdef uint64_t host_mapping(int fd, int flags, int prot) except 0:
    cdef void* at = mmap(NULL, PAGE_SIZE, prot, flags, fd, 0)
    if at == MAP_FAILED:
        raise OSError(errno, "the host maps no such file")
    return <uint64_t>at


@cython.no_gc_clear
cdef class Inode:
    """
    A regular file of the host's, and the frames that hold its bytes.

    A machine has one of each file, whatever it was opened as; ``mmu.inodes`` keeps it while it is
    mapped, or could not be written back.  Who calls a method that takes long is one of its
    ``users``, so that it is not closed meanwhile; once closed it has no frames.

    :param mmu: the machine's.
    :param key: (device, inode number).
    :param fd: opened for reading; a duplicate is kept while it is mapped.
    :raises OSError: ENOMEM; EMFILE, no descriptor for it; or what the host's mmap() says of such
        a file.
    """

    def __cinit__(self, Mmu mmu not None, tuple key, int fd):
        mmu.core.alive()
        self.mmu = mmu
        self.key = key
        self.object = mapping_create(&mmu.u)
        if self.object == NULL:
            raise OSError(ENOMEM, "cannot allocate memory")
        self.object.is_file = 1
        mmu.start_reclaim()
        self.object.fd = opened(fd, os.O_RDONLY)
        munmap(<void*>host_mapping(self.object.fd, MAP_PRIVATE, PROT_READ), PAGE_SIZE)

    def __dealloc__(self):
        # What the host maps not after all, or a call that was interrupted before it mapped it.
        if self.object != NULL and self.mmu is not None and self.mmu.is_ours():
            self.detach()

    def open(self, int fd, bint write):
        """
        Take part in a descriptor; who calls is one of the users.

        :param write: it is one to write back by, and there may be none yet.
        :raises OSError: EMFILE.
        """
        if write and self.object.write_fd < 0:
            self.object.write_fd = opened(fd, os.O_RDWR)
            # While it lies there, a memfd cannot be sealed against writing.
            self.kept = host_mapping(fd, MAP_SHARED, PROT_READ | PROT_WRITE)
        self.look()

    def look(self):
        """Have the frames follow what others did to the file."""
        if self.object != NULL and self.object.fd >= 0:
            self.users += 1
            with nogil:
                filemap_look(self.object)
            self.users -= 1

    @property
    def mapped(self):
        """Whether a VMA maps it."""
        return self.object != NULL and self.object.refcount > 1

    @property
    def nr_pages(self):
        """Its frames."""
        return self.object.nr_pages if self.object != NULL else 0

    def dirty(self, uint64_t first=0, uint64_t last=EVERYTHING):
        """Count its changed frames in pages [first, last]."""
        cdef int64_t n
        if self.object == NULL:
            return 0
        self.users += 1
        with nogil:
            n = filemap_dirty(self.object, first, last)
        self.users -= 1
        return n

    def write_back(self, uint64_t first=0, uint64_t last=EVERYTHING):
        """
        Write its changed frames in pages [first, last] to the file.

        :return: 0, or the errno of a write that failed; what it was to write stays changed.
        """
        cdef int rc
        if self.object == NULL:
            return 0
        self.users += 1
        with nogil:
            filemap_look(self.object)
            rc = filemap_write_back(self.object, first, last)
        self.users -= 1
        return -rc

    def sync(self):
        """
        Have the host keep what was written, over a crash of its own.

        :return: 0, or the errno of fdatasync().
        """
        cdef int number = 0
        if self.object != NULL and self.object.write_fd >= 0:
            self.users += 1
            try:
                os.fdatasync(self.object.write_fd)
            except OSError as error:
                number = error.errno
            finally:
                self.users -= 1
        return number

    def read_ahead(self, uint64_t first, uint64_t last, int nid):
        """Read pages [first, last], as far as there is memory."""
        if self.object != NULL:
            self.users += 1
            with nogil:
                filemap_read_ahead(self.object, first, last, nid)
            self.users -= 1

    def invalidate(self):
        """Give up the frames that equal the file and that no process maps."""
        if self.object != NULL:
            self.users += 1
            with nogil:
                mapping_invalidate(self.object)
            self.users -= 1

    def punch(self, uint64_t first, uint64_t last):
        """
        Make a hole of pages [first, last] in the file.

        :return: 0, or the errno of fallocate().
        """
        cdef int rc = 0
        if self.object != NULL:
            self.users += 1
            with nogil:
                rc = filemap_punch(self.object, first, last)
            self.users -= 1
        return -rc

    def rest(self):
        """Where no VMA maps it any more: write back, give up its frames, and close the file."""
        if self.users or self.mapped:
            return
        self.write_back()
        # Others came and went meanwhile.
        if self.object != NULL and not self.users and not self.mapped and (
                self.object.nr_dirty == 0):
            self.detach()

    def close(self):
        """Write back, give up every frame, and close the file; nothing maps it from now on."""
        if self.object == NULL:
            return
        self.write_back()
        if self.object.nr_dirty:
            warnings.warn(f"{self.object.nr_dirty} pages of a file (inode {self.key[1]}) could "
                          "not be written back", RuntimeWarning, stacklevel=2)
        self.detach()

    # No bytecode runs in here before it is no inode of the machine's any more.
    cdef int detach(self) except -1:
        cdef address_space* object = self.object
        cdef int fd = object.fd, write_fd = object.write_fd
        cdef uint64_t kept = self.kept
        self.kept = 0
        self.object = NULL
        if self.mmu.inodes.get(self.key) is self:
            del self.mmu.inodes[self.key]
        mapping_empty(object)
        object.fd = object.write_fd = -1
        mapping_put(object)
        if kept != 0:
            munmap(<void*>kept, PAGE_SIZE)
        for each in (fd, write_fd):
            if each >= 0:
                os.close(each)
        return 0
