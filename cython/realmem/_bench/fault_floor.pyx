# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
"""
The floor under a fault: a C handler that makes the same host calls as ours and nothing else.

Memory is populated beforehand, as a pool's is.  Maps take its frames in the order of the faults,
as an allocator gives them, so that scattered faults leave as many host VMAs as ours do.  Runs are
mapped by the faults, when and as ours are (run_host.pyx, run_uffd.pyx).
"""
import os

from libc.errno cimport errno
from libc.stdint cimport uint32_t, uint64_t

from realmem._kernel.run_host cimport CHUNK_FEW, CHUNK_MOST
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

    enum { RM_FLOOR_CHUNKS = 1024 };    /* of 256 KiB */
    static struct {
        uint64_t base, block;       /* bytes a fault brings */
        uint64_t next;              /* offset of the next frame */
        uint64_t direct;            /* all frames, and behind them as many to copy from */
        uint64_t length;
        int fd, uffd, protects, copies, zeroes, same;
        int few, most;              /* of 64 pages; few is 0 where no runs are mapped */
        uint64_t used[RM_FLOOR_CHUNKS + 2];     /* by 64 pages, with a border */
        uint8_t mapped[RM_FLOOR_CHUNKS];
        uint64_t maps, mprotects, continues;    /* calls made, as hoststat counts ours */
    } rm_floor;

    static inline int rm_floor_many(uint64_t word, int n)
    {
        return __builtin_popcountll(word) >= n;
    }

    /* So much of 2**shift bytes from there on lies in the window. */
    static inline uint64_t rm_floor_part(uint64_t offset, int shift)
    {
        uint64_t left = rm_floor.length - offset;
        return left >> shift ? 1ull << shift : left;
    }
    static inline void rm_floor_map_block(uint64_t at, uint64_t frame)
    {
        rm_floor.maps++;
        rm_host_map(at, rm_floor.block, PROT_READ | PROT_WRITE, rm_floor.fd, frame);
    }
    static inline void rm_floor_open(uint64_t at, uint64_t length)
    {
        rm_floor.mprotects++;
        mprotect((void *)at, length, PROT_READ | PROT_WRITE);
    }
    static inline void rm_floor_continue(uint64_t at, uint64_t length)
    {
        rm_floor.continues++;
        rm_uffd_continue(rm_floor.uffd, at, length, 0);
    }

    /* 256 KiB of a run; and what was mapped of it before is open again.  Returns whether it is
       mapped: nothing is left to do where it is not, as this fault mapped its own pages. */
    static int rm_floor_chunk(uint64_t offset)
    {
        uint64_t chunk = offset >> 18, bit = offset >> 12 & 63, at = rm_floor.base + (chunk << 18);
        uint64_t *used = &rm_floor.used[chunk + 1];
        uint64_t before = *used;
        *used |= ((rm_floor.block >> 18 ? 0 : 1ull << (rm_floor.block >> 12)) - 1) << bit;
        if (rm_floor.mapped[chunk])
            return 1;
        if (!rm_floor_many(*used, rm_floor.few)
                && !(chunk & 7 && rm_floor_many(used[-1], rm_floor.most))
                && !(~chunk & 7 && rm_floor_many(used[1], rm_floor.most))) {
            rm_floor_map_block(rm_floor.base + offset, offset);
            return 0;
        }
        rm_floor.maps++;
        rm_host_map_closed(at, rm_floor_part(chunk << 18, 18), rm_floor.fd, chunk << 18);
        rm_floor.mapped[chunk] = 1;
        while (before) {
            uint64_t first = __builtin_ctzll(before), n = __builtin_ctzll(~(before >> first));
            rm_floor_open(at + (first << 12), n << 12);
            before &= ~(((n < 64 ? 1ull << n : 0) - 1) << first);
        }
        return 1;
    }

    /* The same of 2 MiB by userfaultfd, at the second fault there. */
    static int rm_floor_registered(uint64_t offset)
    {
        uint64_t region = offset >> 21, at = rm_floor.base + (region << 21);
        uint64_t length = rm_floor_part(region << 21, 21);
        uint64_t *used = &rm_floor.used[region + 1];
        if (rm_floor.mapped[region])
            return 1;
        if (*used == 0 && rm_floor.block == 4096) {
            *used = offset + 1;
            rm_floor_map_block(rm_floor.base + offset, offset);
            return 0;
        }
        rm_floor.maps++;
        rm_host_map_empty(at, length, rm_floor.fd, region << 21);
        rm_uffd_register(rm_floor.uffd, at, length);
        mprotect((void *)at, length, PROT_READ | PROT_WRITE);
        rm_floor.mapped[region] = 1;
        if (*used)
            rm_floor_continue(rm_floor.base + *used - 1, 4096);
        return 1;
    }

    static void rm_floor_handler(int sig, siginfo_t *info, void *context)
    {
        uint64_t offset = ((uint64_t)info->si_addr - rm_floor.base) & ~(rm_floor.block - 1);
        uint64_t at = rm_floor.base + offset;
        (void)sig, (void)context;
        if (rm_floor.zeroes)
            memset((void *)(rm_floor.direct + offset), 0, rm_floor.block);
        if (rm_floor.copies)
            memcpy((void *)(rm_floor.direct + rm_floor.next),
                   (void *)(rm_floor.direct + rm_floor.length + offset),
                   rm_floor.block);
        if (rm_floor.few && !(rm_floor.uffd >= 0 ? rm_floor_registered(offset)
                                                 : rm_floor_chunk(offset)))
            return;
        if (rm_floor.uffd >= 0 && rm_floor.protects) {
            rm_floor.mprotects++;
            rm_uffd_protect(rm_floor.uffd, at, rm_floor.block, 0);
        } else if (rm_floor.uffd >= 0) {
            rm_floor_continue(at, rm_floor.block);
        } else if (rm_floor.protects) {
            rm_floor_open(at, rm_floor.block);
        } else {
            rm_floor_map_block(at, rm_floor.next);
        }
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

    enum {
        RM_MMAP, RM_MPROTECT, RM_REPROTECT, RM_RUN, RM_CONTINUE, RM_UNPROTECT, RM_RUN_CONTINUE
    };

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

    static double rm_floor_run(uint64_t n, const uint32_t *order, int how, int copies, int zeroes,
                               int same, uint64_t block, int uffd, int few, int most)
    {
        struct sigaction sa, before, before_bus;
        uint64_t length = n * 4096, align = 1 << 21;
        double ns = -1;
        void *space;
        if (length >> 18 > RM_FLOOR_CHUNKS) {
            errno = EINVAL;
            return -1;
        }
        rm_floor.uffd = uffd;
        rm_floor.fd = (int)syscall(SYS_memfd_create, "realmem-floor", 1u);
        if (rm_floor.fd < 0)
            return -1;
        space = mmap(NULL, length + align, PROT_NONE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (space != MAP_FAILED) {
            rm_floor.base = ((uint64_t)space + align - 1) & ~(align - 1);
            rm_floor.block = block;
            rm_floor.next = rm_floor.direct = 0;
            rm_floor.length = length;
            rm_floor.copies = rm_floor.zeroes = rm_floor.same = rm_floor.protects = 0;
            rm_floor.few = 0;
            memset(rm_floor.used, 0, sizeof rm_floor.used);
            memset(rm_floor.mapped, 0, sizeof rm_floor.mapped);
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
                rm_floor.protects = how != RM_MMAP && how != RM_CONTINUE && how != RM_RUN_CONTINUE;
                rm_floor.few = how == RM_RUN || how == RM_RUN_CONTINUE ? few : 0;
                rm_floor.most = most;
                rm_floor.copies = copies;
                rm_floor.zeroes = zeroes;
                rm_floor.same = same;
                rm_floor.maps = rm_floor.mprotects = rm_floor.continues = 0;
                ns = rm_floor_touch(n, order);
                sigaction(SIGBUS, &before_bus, NULL);
                sigaction(SIGSEGV, &before, NULL);
            }
            if (rm_floor.direct)
                munmap((void *)rm_floor.direct, 2 * length);
            munmap(space, length + align);
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
                                    bint zeroes, bint same, uint64_t block, int uffd, int few,
                                    int most) noexcept nogil
    uint64_t floor_maps "rm_floor.maps"
    uint64_t floor_mprotects "rm_floor.mprotects"
    uint64_t floor_continues "rm_floor.continues"
    double floor_close "rm_floor_close"(uint64_t at, uint64_t length) noexcept nogil


cdef int userfaultfd(bint wanted) except? -1:
    cdef int fd = uffd_open() if wanted else -1
    if wanted and fd < 0:
        raise OSError(-fd, "userfaultfd is refused")
    return fd


HOW = ("mmap", "mprotect", "reprotect", "run", "continue", "unprotect", "run continue")


def floor(uint64_t n, str how, int order=0, const uint32_t[::1] pages=None, bint copies=False,
          bint zeroes=False, bint same=False):
    """
    Time a bare handler that makes the host calls of a fault and nothing else.

    :param n: 4 KiB pages that are stored to; a multiple of 2**order.
    :param how: ``"mmap"`` of frames, populating; ``"mprotect"`` in a run mapped beforehand;
        ``"reprotect"`` of what was mapped as a whole, and then protected as a whole; ``"run"``:
        mprotect in runs that the faults map, too; by userfaultfd, ``"continue"`` in a run mapped
        beforehand, ``"run continue"``, and ``"unprotect"``.
    :param order: a fault brings 2**order pages.
    :param pages: permutation of page numbers; None goes up.
    :param copies: copy what it brings first, as copy-on-write does.
    :param zeroes: clear what it brings first.
    :param same: map the same frame each time, as reads of empty memory do.
    :return: ns a page.
    :raises OSError: the host refuses the memory, or it is more than 256 MiB.
    """
    cdef const uint32_t* scattered = &pages[0] if pages is not None else NULL
    cdef uint64_t block = <uint64_t>4096 << order
    cdef int kind = HOW.index(how)
    cdef int uffd = userfaultfd(how in ("continue", "unprotect", "run continue"))
    cdef double ns
    with nogil:
        ns = floor_run(n, scattered, kind, copies, zeroes, same, block, uffd, CHUNK_FEW,
                       CHUNK_MOST)
    if uffd >= 0:
        os.close(uffd)
    if ns < 0:
        raise OSError(errno, "no memory for the floor of faults")
    return ns


def floor_calls():
    """Give how many calls the last floor made, by the names that hoststat has for ours."""
    return {"map_fill": floor_maps, "mprotect": floor_mprotects,
            "uffd_continue": floor_continues}


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
