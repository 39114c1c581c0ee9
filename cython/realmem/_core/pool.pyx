# cython: boundscheck=False, wraparound=False, cdivision=True
"""
Host calls behind the pool: reserve, map, bind, populate, check; and the populating child.

Running out of a cgroup's limit or of a bound node while memory is populated does not fail, it
kills.  So a child takes the frames, with oom_score_adj 1000: the kernel picks it, and the frames
stay in the memfd that it shares with its parent.  fallocate() only takes them; the parent, behind
the child, clears them and maps them in one pass.  That keeps two CPUs busy and touches each page
once, and the parent cannot be killed for it, since what it maps is charged already.

The child never returns to Python: other threads of the parent may hold any lock at the fork.  It
runs nothing but system calls, and it is made by clone() rather than fork(): libc's at-fork
handlers are skipped, and with no exit signal no SIGCHLD handler sees it and no wait(-1)
elsewhere in the program reaps it.
"""
import os

from cpython.exc cimport PyErr_CheckSignals
from cpython.mem cimport PyMem_Free, PyMem_Calloc
from libc.errno cimport EAGAIN, EINTR, EINVAL, ENOSYS, EOPNOTSUPP, errno
from libc.signal cimport SIGKILL
from libc.stdint cimport int32_t, int64_t, uint64_t
from libc.string cimport memcpy, memset
from posix.fcntl cimport O_CLOEXEC, O_WRONLY, open as posix_open
from posix.mman cimport mlock
from posix.signal cimport kill, sigfillset, sigset_t
from posix.unistd cimport close, getpid, getppid, write
from posix.wait cimport waitpid

from realmem.linux cimport (
    MADV_DONTDUMP, MADV_DONTFORK, MADV_HUGEPAGE, MADV_POPULATE_WRITE, MAP_ANONYMOUS, MAP_FAILED,
    MAP_FIXED, MAP_NORESERVE, MAP_PRIVATE, MAP_SHARED, PROT_NONE, PROT_READ, PROT_WRITE,
    PR_SET_PDEATHSIG, WALL, clone_quietly, close_range, exit_group, fallocate, madvise, mbind,
    mmap, move_pages, munmap, sched_setaffinity,
)

cdef extern from "<signal.h>" nogil:
    int pthread_sigmask(int how, const sigset_t* new, sigset_t* old)
    enum: SIG_BLOCK
    enum: SIG_SETMASK
cdef extern from "<sys/prctl.h>" nogil:
    int prctl(int option, unsigned long arg)
cdef extern from "<fcntl.h>" nogil:
    int pipe2(int* fds, int flags)

cdef enum:
    PAGE = 4096
    MASK_WORDS = 64             # node and CPU masks: up to 4096 of either
    MPOL_BIND = 2
    BATCH = 2048                # pages in one move_pages call
    MAX_REGIONS = 64

    BY_FALLOCATE = 0            # how a region's frames are taken
    BY_MAPPING = 1
    BY_HUGE_MAPPING = 2         # huge pages come on request of a mapping only
    SAY_FILLED = 1
    SAY_FAILED = 2
    SAY_DONE = 3

# What the child tells: one message a chunk, small enough to be written in one piece.
FILLED = SAY_FILLED             # value: bytes of the region done so far
FAILED = SAY_FAILED             # value: errno
DONE = SAY_DONE                 # all regions
MESSAGE = "=iiq"                # region, kind, value

cdef struct message:
    int32_t region
    int32_t kind
    int64_t value

cdef struct region:
    int32_t fd
    int32_t method              # BY_*
    uint64_t size
    uint64_t cpus[MASK_WORDS]   # run here while filling: the host node's own CPUs

cdef struct orders:             # all that the child reads; copied by the fork
    int32_t count
    int32_t out_fd
    int32_t parent
    uint64_t chunk
    region regions[MAX_REGIONS]


def memfd(list fds, int i, str name, unsigned int flags):
    """Make a memfd and note it in fds[i]: one step, which no KeyboardInterrupt parts."""
    fds[i] = os.memfd_create(name, flags)


def reserve(uint64_t size, uint64_t align, list held=None):
    """
    Reserve address space with nothing behind it; give its address.

    With ``held``, note (address, size) there: one step, which no KeyboardInterrupt parts.
    """
    cdef char* where = <char*>mmap(NULL, size + align, PROT_NONE,
                                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    if <void*>where == MAP_FAILED:
        raise OSError(errno, os.strerror(errno))
    cdef char* first = <char*>((<uint64_t>where + align - 1) // align * align)
    if first != where:
        munmap(where, first - where)
    if first + size != where + size + align:
        munmap(first + size, where + align - first)
    madvise(first, size, MADV_DONTFORK)
    madvise(first, size, MADV_DONTDUMP)
    if held is not None:
        held.append((<uint64_t>first, size))
    return <uint64_t>first


def reserve_at(uint64_t where, uint64_t size):
    """Take what is mapped at an address away and keep the address: a touch is a SIGSEGV."""
    if mmap(<void*>where, size, PROT_NONE,
            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) == MAP_FAILED:
        raise OSError(errno, os.strerror(errno))
    madvise(<void*>where, size, MADV_DONTFORK)


def map_shared(uint64_t where, uint64_t size, int fd, uint64_t offset, bint huge=False):
    """Map a part of a memfd at a fixed address, unseen by forks and core dumps."""
    cdef void* got = mmap(<void*>where, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
                          fd, offset)
    if got == MAP_FAILED:
        raise OSError(errno, os.strerror(errno))
    cdef int rc = madvise(got, size, MADV_DONTFORK)
    if rc == 0:
        rc = madvise(got, size, MADV_DONTDUMP)
    if rc == 0 and huge:
        rc = madvise(got, size, MADV_HUGEPAGE)
    if rc != 0:
        raise OSError(errno, os.strerror(errno))


def unmap(uint64_t where, uint64_t size):
    """Give address space back."""
    if munmap(<void*>where, size) != 0:
        raise OSError(errno, os.strerror(errno))


def bind(uint64_t where, uint64_t size, unsigned int host_node):
    """
    Bind a shared mapping to a host node: the policy stays with the memfd.

    :return: 0, or the errno of mbind.
    """
    cdef unsigned long mask[MASK_WORDS]
    if host_node >= MASK_WORDS * 64:
        return EINVAL
    memset(mask, 0, sizeof(mask))
    mask[host_node // 64] = <unsigned long>1 << (host_node % 64)
    if mbind(<void*>where, size, MPOL_BIND, mask, MASK_WORDS * 64 + 1, 0) != 0:
        return errno
    return 0


def lock(uint64_t where, uint64_t size):
    """Keep a populated range from being swapped; give 0 or an errno."""
    cdef int rc
    with nogil:
        rc = mlock(<void*>where, size)
    return errno if rc != 0 else 0


def populate(uint64_t where, uint64_t size):
    """Map every page of a range, writable without another fault; give 0 or an errno."""
    cdef int rc
    while True:
        with nogil:
            rc = populate_range(<char*>where, size)
        if rc != EINTR and rc != EAGAIN:
            return rc
        PyErr_CheckSignals()


def misplaced(uint64_t where, uint64_t size, uint64_t stride, int host_node):
    """
    Count the pages of a mapped range that are not on a host node, by the kernel's account.

    :param stride: bytes of a page of the mapping.
    :return: (such pages, 0), or (0, errno) where move_pages is refused.
    """
    cdef long wrong
    with nogil:
        wrong = misplaced_pages(<char*>where, size, stride, host_node)
    return (wrong, 0) if wrong >= 0 else (0, -wrong)


cdef int populate_range(char* where, uint64_t size) noexcept nogil:
    cdef uint64_t done = 0
    cdef volatile char* page
    if madvise(where, size, MADV_POPULATE_WRITE) == 0:
        return 0
    if errno != EINVAL:
        return errno
    # Before Linux 5.14.  Nobody else uses these pages yet, so writing back what is there is safe.
    while done < size:
        page = where + done
        page[0] = page[0]
        done += PAGE
    return 0


cdef long misplaced_pages(char* where, uint64_t size, uint64_t stride, int node) noexcept nogil:
    cdef void* pages[BATCH]
    cdef int status[BATCH]
    cdef uint64_t done = 0
    cdef int count, i
    cdef long wrong = 0
    while done < size:
        count = 0
        while count < BATCH and done < size:
            pages[count] = where + done
            count += 1
            done += stride
        if move_pages(0, count, pages, NULL, status, 0) != 0:
            return -errno
        for i in range(count):
            wrong += status[i] != node
    return wrong


cdef class Filler:
    """
    A child process that takes the frames of memfds, one region after the other.

    Read ``fileno()`` for its messages (``MESSAGE``); end of file without ``DONE`` means that it
    died.  ``stop()`` ends and reaps it, at any time and as often as one likes.
    """
    cdef readonly int pid
    cdef int owner
    cdef int read_fd
    cdef int status

    def __cinit__(self, list regions, uint64_t chunk):
        # regions: (fd, bytes, huge pages on request, CPU mask as bytes) each
        self.pid = self.read_fd = -1
        self.owner = getpid()
        if len(regions) > MAX_REGIONS:
            raise ValueError(f"at most {MAX_REGIONS} regions, not {len(regions)}")
        cdef orders* work = <orders*>PyMem_Calloc(1, sizeof(orders))
        if work == NULL:
            raise MemoryError()
        try:
            work.chunk = chunk
            work.count = <int32_t>len(regions)
            for i, (fd, size, huge, cpus) in enumerate(regions):
                describe(&work.regions[i], fd, size, huge, cpus)
            self.start(work)
        finally:
            PyMem_Free(work)

    cdef int start(self, orders* work) except -1:
        cdef int ends[2]
        cdef sigset_t everything, before
        cdef long pid
        cdef int why
        if pipe2(ends, O_CLOEXEC) != 0:
            raise OSError(errno, os.strerror(errno))
        work.out_fd = ends[1]
        work.parent = self.owner
        # Blocked across the fork: a handler of the program must not run in the child.
        sigfillset(&everything)
        pthread_sigmask(SIG_BLOCK, &everything, &before)
        pid = clone_quietly()
        if pid == 0:
            fill(work)
        why = errno
        pthread_sigmask(SIG_SETMASK, &before, NULL)
        close(ends[1])
        if pid < 0:
            close(ends[0])
            raise OSError(why, os.strerror(why))
        self.pid = <int>pid
        self.read_fd = ends[0]
        return 0

    def fileno(self):
        """Give the descriptor that its messages are read from."""
        return self.read_fd

    def stop(self):
        """
        End the child if it still runs, and reap it.

        :return: its wait status.
        """
        if self.read_fd >= 0:
            close(self.read_fd)
            self.read_fd = -1
        if self.pid > 0 and self.owner == getpid():
            kill(self.pid, SIGKILL)
            self.reap()
        self.pid = -1
        return self.status

    def wait(self):
        """
        Reap a child that has closed its end of the pipe.

        :return: its wait status.
        """
        if self.pid > 0:
            self.reap()
        return self.status

    cdef int reap(self) except -1:
        cdef int pid = self.pid
        cdef int status = 0
        cdef int got
        with nogil:
            got = waitpid(pid, &status, WALL)
            while got < 0 and errno == EINTR:
                got = waitpid(pid, &status, WALL)
        self.pid = -1
        self.status = status
        return 0

    def __dealloc__(self):
        if self.read_fd >= 0:
            close(self.read_fd)
        if self.pid > 0 and self.owner == getpid():
            kill(self.pid, SIGKILL)
            waitpid(self.pid, NULL, WALL)


cdef int describe(region* r, int fd, uint64_t size, bint huge, bytes cpus) except -1:
    cdef char* mask = cpus
    r.fd = fd
    r.size = size
    r.method = BY_HUGE_MAPPING if huge else BY_FALLOCATE
    memcpy(r.cpus, mask, min(<size_t>len(cpus), sizeof(r.cpus)))
    return 0


# ---- in the child: system calls only, no Python, no libc state ----

cdef void fill(orders* work) noexcept nogil:
    cdef int i
    if prctl(PR_SET_PDEATHSIG, SIGKILL) != 0 or getppid() != work.parent:
        exit_group(1)
    volunteer_for_oom()
    drop_descriptors(work)
    for i in range(work.count):
        # No harm where it is refused: mbind decides where it is allowed.
        sched_setaffinity(sizeof(work.regions[i].cpus), work.regions[i].cpus)
        fill_region(work, i)
    tell(work.out_fd, 0, SAY_DONE, 0)
    exit_group(0)


cdef void volunteer_for_oom() noexcept nogil:
    cdef int fd = posix_open("/proc/self/oom_score_adj", O_WRONLY)
    if fd >= 0:
        write(fd, "1000", 4)
        close(fd)


# Keep only what the work needs: a pipe of the program must not stay open here.
cdef void drop_descriptors(orders* work) noexcept nogil:
    cdef int first = 0
    cdef int lowest, i
    while True:
        lowest = -1
        if work.out_fd >= first:
            lowest = work.out_fd
        for i in range(work.count):
            if work.regions[i].fd >= first and (lowest < 0 or work.regions[i].fd < lowest):
                lowest = work.regions[i].fd
        if lowest < 0:
            close_range(first, <unsigned int>-1)
            return
        if lowest > first:
            close_range(first, lowest - 1)
        first = lowest + 1


cdef void fill_region(orders* work, int index) noexcept nogil:
    cdef region* r = &work.regions[index]
    cdef uint64_t done = 0
    cdef uint64_t step
    cdef char* where = NULL
    cdef int rc = 0
    while done < r.size:
        step = min(work.chunk, r.size - done)
        if r.method == BY_FALLOCATE:
            rc = fallocate(r.fd, 0, done, step)
            if rc != 0:
                rc = errno
                if rc == EINTR:
                    continue
                if done == 0 and (rc == EOPNOTSUPP or rc == ENOSYS):
                    r.method = BY_MAPPING
        if r.method != BY_FALLOCATE:
            if where == NULL:
                where = own_mapping(r)
            rc = errno if where == NULL else populate_range(where + done, step)
            if rc == EINTR or rc == EAGAIN:
                continue
        if rc != 0:
            tell(work.out_fd, index, SAY_FAILED, rc)
            exit_group(2)
        done += step
        tell(work.out_fd, index, SAY_FILLED, done)
    if where != NULL:
        munmap(where, r.size)


# A mapping at a 2 MiB boundary, so that the kernel may use huge pages.
cdef char* own_mapping(region* r) noexcept nogil:
    cdef uint64_t huge = 2 << 20
    cdef void* where = mmap(NULL, r.size + huge, PROT_NONE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    if where == MAP_FAILED:
        return NULL
    where = <void*>((<uint64_t>where + huge - 1) // huge * huge)
    where = mmap(where, r.size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, r.fd, 0)
    if where == MAP_FAILED:
        return NULL
    if r.method == BY_HUGE_MAPPING:
        madvise(where, r.size, MADV_HUGEPAGE)
    return <char*>where


cdef void tell(int fd, int index, int kind, int64_t value) noexcept nogil:
    cdef message m
    m.region = index
    m.kind = kind
    m.value = value
    while write(fd, &m, sizeof(m)) < 0:
        if errno != EINTR:
            exit_group(3)       # the parent has gone or given up
