# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
"""
The floor under a fault: a C handler that makes the same host call as ours and nothing else.

Memory is populated beforehand, as a pool's is.  Maps take its frames in the order of the faults,
as an allocator gives them, so that scattered faults leave as many host VMAs as ours do.
"""
import os

from libc.errno cimport errno
from libc.stdint cimport uint32_t, uint64_t

from realmem._kernel.uffd cimport uffd_open

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <errno.h>
    #include <signal.h>
    #include <stdint.h>
    #include <string.h>
    #include <sys/mman.h>
    #include <sys/syscall.h>
    #include <time.h>
    #include <unistd.h>

    static inline double rm_floor_now(void)
    {
        struct timespec t;
        clock_gettime(CLOCK_MONOTONIC, &t);
        return t.tv_sec * 1e9 + t.tv_nsec;
    }

    static struct {
        uint64_t base, block;       /* bytes a fault brings */
        uint64_t next;              /* offset of the next frame */
        uint64_t direct;            /* all frames, and behind them as many to copy from */
        uint64_t length;
        int fd, uffd, protects, copies, same;
    } rm_floor;

    static void rm_floor_handler(int sig, siginfo_t *info, void *context)
    {
        uint64_t at = (uint64_t)info->si_addr - rm_floor.base;
        (void)sig, (void)context;
        at = rm_floor.base + (at & ~(rm_floor.block - 1));
        if (rm_floor.copies)
            memcpy((void *)(rm_floor.direct + rm_floor.next),
                   (void *)(rm_floor.direct + rm_floor.length + (at - rm_floor.base)),
                   rm_floor.block);
        if (rm_floor.uffd >= 0 && rm_floor.protects)
            rm_uffd_protect(rm_floor.uffd, at, rm_floor.block, 0);
        else if (rm_floor.uffd >= 0)
            rm_uffd_continue(rm_floor.uffd, at, rm_floor.block, 0);
        else if (rm_floor.protects)
            mprotect((void *)at, rm_floor.block, PROT_READ | PROT_WRITE);
        else
            mmap((void *)at, rm_floor.block, PROT_READ | PROT_WRITE,
                 MAP_SHARED | MAP_FIXED | MAP_POPULATE, rm_floor.fd, (long)rm_floor.next);
        if (!rm_floor.same)
            rm_floor.next += rm_floor.block;
    }

    static double rm_floor_touch(uint64_t n, const uint32_t *order)
    {
        double begin = rm_floor_now();
        uint64_t i;
        for (i = 0; i < n; i++)
            *(volatile uint64_t *)(rm_floor.base + 4096 * (order ? order[i] : i)) = i;
        return (rm_floor_now() - begin) / n;
    }

    enum { RM_MMAP, RM_MPROTECT, RM_REPROTECT, RM_CONTINUE, RM_UNPROTECT };

    static void *rm_floor_map(uint64_t base, int prot, int flags)
    {
        return mmap((void *)base, rm_floor.length, prot, MAP_SHARED | flags, rm_floor.fd, 0);
    }

    /* The window: a run that is mapped already and closed, or nothing but addresses. */
    static int rm_floor_begin(int how)
    {
        void *all = mmap(NULL, 2 * rm_floor.length, PROT_READ | PROT_WRITE,
                         MAP_SHARED | MAP_POPULATE, rm_floor.fd, 0);
        if (all == MAP_FAILED)
            return -1;
        rm_floor.direct = (uint64_t)all;
        if (how == RM_CONTINUE || how == RM_UNPROTECT) {
            if (rm_floor_map(rm_floor.base, PROT_NONE, MAP_FIXED) == MAP_FAILED
                    || rm_uffd_register(rm_floor.uffd, rm_floor.base, rm_floor.length) != 0)
                return -1;
            return mprotect((void *)rm_floor.base, rm_floor.length, PROT_READ | PROT_WRITE);
        }
        if (how != RM_MPROTECT && how != RM_REPROTECT)
            return 0;
        if (rm_floor_map(rm_floor.base, PROT_READ | PROT_WRITE, MAP_FIXED | MAP_POPULATE)
                == MAP_FAILED)
            return -1;
        return how == RM_REPROTECT
               ? 0 : mprotect((void *)rm_floor.base, rm_floor.length, PROT_NONE);
    }

    /* Take the right to write from all of it: by the same means that gives it back. */
    static int rm_floor_protect(void)
    {
        if (rm_floor.uffd >= 0)
            return rm_uffd_protect(rm_floor.uffd, rm_floor.base, rm_floor.length, 1);
        return mprotect((void *)rm_floor.base, rm_floor.length, PROT_READ);
    }

    static double rm_floor_run(uint64_t n, const uint32_t *order, int how, int copies, int same,
                               uint64_t block, int uffd)
    {
        struct sigaction sa, before, before_bus;
        uint64_t length = n * 4096;
        double ns = -1;
        void *space;
        rm_floor.uffd = uffd;
        rm_floor.fd = (int)syscall(SYS_memfd_create, "realmem-floor", 1u);
        if (rm_floor.fd < 0)
            return -1;
        space = mmap(NULL, length + block, PROT_NONE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (space != MAP_FAILED) {
            rm_floor.base = ((uint64_t)space + block - 1) & ~(block - 1);
            rm_floor.block = block;
            rm_floor.next = rm_floor.direct = 0;
            rm_floor.length = length;
            rm_floor.copies = rm_floor.same = rm_floor.protects = 0;
            memset(&sa, 0, sizeof sa);
            sa.sa_sigaction = rm_floor_handler;
            sa.sa_flags = SA_SIGINFO | SA_ONSTACK;
            sigfillset(&sa.sa_mask);
            if (ftruncate(rm_floor.fd, (long)(2 * length)) == 0 && rm_floor_begin(how) == 0) {
                sigaction(SIGSEGV, &sa, &before);
                sigaction(SIGBUS, &sa, &before_bus);
                if (how == RM_REPROTECT || how == RM_UNPROTECT) {
                    rm_floor_touch(n, order);
                    rm_floor.next = 0;
                    rm_floor_protect();
                }
                rm_floor.protects = how != RM_MMAP && how != RM_CONTINUE;
                rm_floor.copies = copies;
                rm_floor.same = same;
                ns = rm_floor_touch(n, order);
                sigaction(SIGBUS, &before_bus, NULL);
                sigaction(SIGSEGV, &before, NULL);
            }
            if (rm_floor.direct)
                munmap((void *)rm_floor.direct, 2 * length);
            munmap(space, length + block);
        }
        close(rm_floor.fd);
        return ns;
    }

    /* One mprotect that takes the right to write, and one that gives it back; ns of the first. */
    static double rm_floor_close(uint64_t at, uint64_t length)
    {
        double begin = rm_floor_now();
        double ns;
        if (mprotect((void *)at, length, PROT_READ) != 0)
            return -1;
        ns = rm_floor_now() - begin;
        return mprotect((void *)at, length, PROT_READ | PROT_WRITE) == 0 ? ns : -1;
    }
    """
    double floor_run "rm_floor_run"(uint64_t n, const uint32_t* order, int how, bint copies,
                                    bint same, uint64_t block, int uffd) noexcept nogil
    double floor_close "rm_floor_close"(uint64_t at, uint64_t length) noexcept nogil


cdef int userfaultfd(bint wanted) except? -1:
    cdef int fd = uffd_open() if wanted else -1
    if wanted and fd < 0:
        raise OSError(-fd, "userfaultfd is refused")
    return fd


HOW = ("mmap", "mprotect", "reprotect", "continue", "unprotect")


def floor(uint64_t n, str how, int order=0, const uint32_t[::1] pages=None, bint copies=False,
          bint same=False):
    """
    Time a bare handler that makes one host call a fault and nothing else.

    :param n: 4 KiB pages that are stored to; a multiple of 2**order.
    :param how: ``"mmap"`` of frames, populating; ``"mprotect"`` in a run mapped beforehand;
        ``"reprotect"`` of what was mapped as a whole, and then protected as a whole; by
        userfaultfd, ``"continue"`` in a run mapped beforehand, and ``"unprotect"``.
    :param order: a fault brings 2**order pages.
    :param pages: permutation of page numbers; None goes up.
    :param copies: copy what it brings first, as copy-on-write does.
    :param same: map the same frame each time, as reads of empty memory do.
    :return: ns a page.
    :raises OSError: the host refuses the memory.
    """
    cdef const uint32_t* scattered = &pages[0] if pages is not None else NULL
    cdef uint64_t block = <uint64_t>4096 << order
    cdef int kind = HOW.index(how)
    cdef int uffd = userfaultfd(how in ("continue", "unprotect"))
    cdef double ns
    with nogil:
        ns = floor_run(n, scattered, kind, copies, same, block, uffd)
    if uffd >= 0:
        os.close(uffd)
    if ns < 0:
        raise OSError(errno, "no memory for the floor of faults")
    return ns


def write_protect(uint64_t at, uint64_t n):
    """
    Time one bare mprotect that takes the right to write from n pages, all mapped writable.

    They are writable again afterwards.

    :param at: host address of the first.
    :return: ns a page.
    :raises OSError: the host refuses.
    """
    cdef double ns
    with nogil:
        ns = floor_close(at, n * 4096)
    if ns < 0:
        raise OSError(errno, "mprotect of the floor of forks")
    return ns / n
