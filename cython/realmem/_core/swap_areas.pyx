# cython: language_level=3
"""Swap areas of a machine."""
from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport EIO, ENOMEM, EPERM
from libc.stdint cimport int64_t, uint32_t, uint64_t

from realmem._core.mmu cimport Mmu
from realmem._core.space cimport Space
from realmem._kernel.host_calls cimport mutex_lock, mutex_unlock
from realmem._kernel.mm_lock cimport lock_live
from realmem._kernel.mm_types cimport (
    FAULT_OK, FAULT_OOM, MAX_SWAPFILES, mm_struct, mmu as mmu_struct, swap_info_struct,
)
from realmem._kernel.shmem cimport shmem_unuse
from realmem._kernel.swap_file cimport file_store
from realmem._kernel.swap_in cimport unuse_mm_locked
from realmem._kernel.vmscan cimport reclaim_begins, reclaim_ends, reclaim_for_fault
from realmem.linux cimport (
    MAP_ANONYMOUS, MAP_FAILED, MAP_NORESERVE, MAP_PRIVATE, PROT_READ, PROT_WRITE, mmap, munmap,
    sched_yield,
)
from realmem.types cimport page

import os


cdef class SwapArea:
    """
    An area that pages are swapped to, until off().

    :param mmu: the machine's.
    :param fd: a file of `max` pages, open for reading and writing; it is closed with the area.
    :param max: pages, of which the first is no slot.
    :param prio: of areas with room that of the highest number is used.
    :raises OSError: EPERM, there are MAX_SWAPFILES already; ENOMEM.
    """

    def __cinit__(self, Mmu mmu not None, int fd, uint64_t max, int prio):
        cdef mmu_struct* u = &mmu.u
        cdef swap_info_struct* si = NULL
        cdef int i, type = -1
        mmu.core.alive()
        self.fd = -1
        for i in range(MAX_SWAPFILES - 1, -1, -1):
            if not u.swap[i].used:
                si = &u.swap[i]
                type = i
        if si == NULL:
            raise OSError(EPERM, f"{MAX_SWAPFILES} swap areas are in use")
        self.map_bytes = max * sizeof(uint32_t)
        self.cache_bytes = max * sizeof(page*)
        si.map = <uint32_t*>reserve(self.map_bytes)
        si.cache = <page**>reserve(self.cache_bytes)
        if si.map == NULL or si.cache == NULL:
            release(si.map, self.map_bytes)
            release(si.cache, self.cache_bytes)
            raise OSError(ENOMEM, "cannot allocate memory")
        self.mmu = mmu
        self.fd = fd
        self.type = type
        self.prio = prio
        self.max = max
        file_store(&si.store, fd)
        mutex_lock(&u.swap_lock)
        si.prio = prio
        si.max = max
        si.inuse = si.hand = 0
        si.used = si.writable = 1
        u.nr_swap_pages += <int64_t>max - 1
        u.total_swap_pages += <int64_t>max - 1
        u.total_pages += <int64_t>max - 1
        mutex_unlock(&u.swap_lock)
        mmu.areas.append(self)
        mmu.start_reclaim()

    @property
    def pages(self):
        """Its slots."""
        return self.max - 1

    @property
    def used(self):
        """Slots that hold a page."""
        return self.mmu.u.swap[self.type].inuse

    def off(self, spaces):
        """
        Bring every page back, and close the area.

        :param spaces: gives every address space that has not exited, the oldest first.
        :raises OSError: ENOMEM, there is no room for them; EIO, one can't be read.  The area stays
            then, as it does when a signal handler raises.
        """
        cdef swap_info_struct* si = &self.mmu.u.swap[self.type]
        cdef Space space
        if self.fd < 0:
            return
        self.take_pages(False)
        try:
            # What is written or read meanwhile, or is some process's that was forked, takes
            # another turn.
            while si.inuse != 0:
                self.bring_back(None)
                for space in spaces():
                    self.bring_back(space)
                PyErr_CheckSignals()
                sched_yield()
        except BaseException:
            self.take_pages(True)
            raise
        self.close()

    # Whether it takes new pages from now on.
    cdef void take_pages(self, bint on) noexcept:
        cdef mmu_struct* u = &self.mmu.u
        cdef swap_info_struct* si = &u.swap[self.type]
        mutex_lock(&u.swap_lock)
        if si.writable != on:
            si.writable = on
            u.nr_swap_pages += <int64_t>(si.max - 1 - si.inuse) * (1 if on else -1)
        mutex_unlock(&u.swap_lock)

    # What an address space has there, or None: objects of shared memory.
    cdef int bring_back(self, Space space) except -1:
        cdef mmu_struct* u = &self.mmu.u
        cdef mm_struct* mm = NULL if space is None else space.mm
        cdef uint64_t id = 0 if space is None else space.id
        cdef int rc
        with nogil:
            rc = unuse_turns(u, mm, id, self.type)
        if rc == FAULT_OOM:
            raise OSError(ENOMEM, os.strerror(ENOMEM))
        if rc != FAULT_OK:
            raise OSError(EIO, os.strerror(EIO))
        return 0

    def close(self):
        """Close it; nobody refers to its slots any more, or ever will."""
        cdef mmu_struct* u = &self.mmu.u
        cdef swap_info_struct* si = &u.swap[self.type]
        cdef int fd = self.fd
        if fd < 0:
            return
        self.fd = -1
        self.take_pages(False)
        mutex_lock(&u.swap_lock)
        u.total_swap_pages -= <int64_t>si.max - 1
        u.total_pages -= <int64_t>si.max - 1
        si.used = 0
        mutex_unlock(&u.swap_lock)
        release(si.map, self.map_bytes)
        release(si.cache, self.cache_bytes)
        si.map = NULL
        si.cache = NULL
        if self in self.mmu.areas:
            self.mmu.areas.remove(self)
        os.close(fd)


# Bring back what an address space has there, or NULL: objects of shared memory.
cdef int unuse_turns(mmu_struct* u, mm_struct* mm, uint64_t id, int type) noexcept nogil:
    cdef int rc = FAULT_OOM
    cdef int turn = 0
    cdef bint found = True
    while rc == FAULT_OOM and found:
        reclaim_begins(u)
        if mm == NULL:
            rc = shmem_unuse(u, type)
        elif lock_live(mm, id):
            rc = unuse_mm_locked(mm, type)
            mutex_unlock(&mm.lock)
        else:
            rc = FAULT_OK
        if rc == FAULT_OOM:
            found = reclaim_for_fault(u, turn)
            turn += 1
        reclaim_ends(u)
    return rc


cdef void* reserve(uint64_t length) noexcept nogil:
    cdef void* at = mmap(NULL, length, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    return NULL if at == MAP_FAILED else at


cdef void release(void* at, uint64_t length) noexcept nogil:
    if at != NULL:
        munmap(at, length)
