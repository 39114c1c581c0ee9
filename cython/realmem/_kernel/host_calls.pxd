# The host calls of the fault path, and the lock that may sleep in it.
#
# Raw system calls, because glibc marks mmap and its kin as leaf functions: the compiler could
# then move stores to what the signal handler reads across them.  Each wrapper is a compiler
# barrier and returns 0 or -errno; the global errno is left as it was.
from libc.stdint cimport int64_t, uint64_t

from realmem.compiler cimport lock_order

cdef extern from *:
    """
    #ifndef REALMEM_HOST_CALLS_H
    #define REALMEM_HOST_CALLS_H
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <errno.h>
    #include <linux/futex.h>
    #include <pthread.h>
    #include <stdint.h>
    #include <sys/mman.h>
    #include <sys/syscall.h>
    #include <unistd.h>

    static inline long rm_hostcall(long nr, long a, long b, long c, long d, long e, long f)
    {
        int saved = errno;
        long rc;
        __asm__ __volatile__("" ::: "memory");
        rc = syscall(nr, a, b, c, d, e, f);
        __asm__ __volatile__("" ::: "memory");
        if (rc == -1)
            rc = -errno;
        errno = saved;
        return rc;
    }

    /* Have the host fill its page tables for memory just mapped.  MAP_POPULATE looks at each page
       by itself; a load brings all of its 64 KiB (fault_around_bytes), which takes two thirds of
       the time.  Where that is set to less, what is missing follows at the first access. */
    static inline void rm_host_fill(uint64_t at, uint64_t len)
    {
        uint64_t end = at + len;
        for (; at < end; at = (at | 0xffff) + 1)
            (void)*(const volatile char *)at;
    }
    /* Frames of fd into [at, at + len), replacing what is there. */
    static inline int rm_host_map(uint64_t at, uint64_t len, int prot, int fd, uint64_t off)
    {
        int populate = len <= 4096 ? MAP_POPULATE : 0;
        long rc = rm_hostcall(SYS_mmap, (long)at, (long)len, prot,
                              MAP_SHARED | MAP_FIXED | populate, fd, (long)off);
        if (rc < 0 && rc > -4096)
            return (int)rc;
        if (!populate)
            rm_host_fill(at, len);
        return 0;
    }
    /* The same, filled but without access: made elsewhere and moved, since to fill it takes
       access.
       Returns 0; -errno with nothing changed; 1 if what was there is gone. */
    static inline int rm_host_map_closed(uint64_t at, uint64_t len, int fd, uint64_t off)
    {
        long from = rm_hostcall(SYS_mmap, 0, (long)len, PROT_READ, MAP_SHARED, fd, (long)off);
        long rc, back;
        if (from < 0 && from > -4096)
            return (int)from;
        rm_host_fill((uint64_t)from, len);
        rc = rm_hostcall(SYS_mprotect, from, (long)len, PROT_NONE, 0, 0, 0);
        if (rc == 0) {
            rc = rm_hostcall(SYS_mremap, from, (long)len, (long)len,
                             MREMAP_MAYMOVE | MREMAP_FIXED, (long)at, 0);
            if (!(rc < 0 && rc > -4096))
                return 0;
            /* The target goes first: where it did, nobody else's mapping may come to lie. */
            back = rm_hostcall(SYS_mmap, (long)at, (long)len, PROT_NONE,
                               MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE
                               | MAP_FIXED_NOREPLACE, -1, 0);
            if (!(back < 0 && back > -4096))
                rc = 1;
        }
        rm_hostcall(SYS_munmap, from, (long)len, 0, 0, 0, 0);
        return (int)rc;
    }
    /* The same without access, and nothing of it in the host's page tables. */
    static inline int rm_host_map_empty(uint64_t at, uint64_t len, int fd, uint64_t off)
    {
        long rc = rm_hostcall(SYS_mmap, (long)at, (long)len, PROT_NONE, MAP_SHARED | MAP_FIXED,
                              fd, (long)off);
        return rc < 0 && rc > -4096 ? (int)rc : 0;
    }
    /* A private copy of frames of fd: stores do not reach them. */
    static inline int rm_host_map_private(uint64_t at, uint64_t len, int fd, uint64_t off)
    {
        long rc = rm_hostcall(SYS_mmap, (long)at, (long)len, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_FIXED, fd, (long)off);
        return rc < 0 && rc > -4096 ? (int)rc : 0;
    }
    static inline int rm_host_map_zero(uint64_t at, uint64_t len)
    {
        long rc = rm_hostcall(SYS_mmap, (long)at, (long)len, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
        return rc < 0 && rc > -4096 ? (int)rc : 0;
    }
    /* Back to a bare reservation. */
    static inline int rm_host_clear(uint64_t at, uint64_t len)
    {
        long rc = rm_hostcall(SYS_mmap, (long)at, (long)len, PROT_NONE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
        return rc < 0 && rc > -4096 ? (int)rc : 0;
    }
    /* Reserve len bytes somewhere; 0 when the host refuses. */
    static inline uint64_t rm_host_reserve(uint64_t len, int prot)
    {
        long rc = rm_hostcall(SYS_mmap, 0, (long)len, prot,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        return rc < 0 && rc > -4096 ? 0 : (uint64_t)rc;
    }
    static inline int rm_host_protect(uint64_t at, uint64_t len, int prot)
    {
        return (int)rm_hostcall(SYS_mprotect, (long)at, (long)len, prot, 0, 0, 0);
    }
    static inline int rm_host_unmap(uint64_t at, uint64_t len)
    {
        return (int)rm_hostcall(SYS_munmap, (long)at, (long)len, 0, 0, 0, 0);
    }
    static inline int rm_host_discard(uint64_t at, uint64_t len)
    {
        return (int)rm_hostcall(SYS_madvise, (long)at, (long)len, MADV_DONTNEED, 0, 0, 0);
    }
    static inline int rm_host_nodump(uint64_t at, uint64_t len)
    {
        return (int)rm_hostcall(SYS_madvise, (long)at, (long)len, MADV_DONTDUMP, 0, 0, 0);
    }
    static inline int64_t rm_gettid(void)
    {
        return rm_hostcall(SYS_gettid, 0, 0, 0, 0, 0, 0);
    }
    static inline uint64_t rm_thread_ident(void) { return (uint64_t)pthread_self(); }

    /* A mutex that sleeps in the host kernel: 0 free, 1 held, 2 held with waiters. */
    typedef struct { int word; uint64_t rank; const rm_lock_order *order; } rm_mutex;

    static inline int rm_mutex_try(rm_mutex *m)
    {
        int free = 0;
        return __atomic_compare_exchange_n(&m->word, &free, 1, 0,
                                           __ATOMIC_ACQUIRE, __ATOMIC_RELAXED);
    }
    static __attribute__((noinline, unused)) void rm_mutex_lock_slow(rm_mutex *m)
    {
        while (__atomic_exchange_n(&m->word, 2, __ATOMIC_ACQUIRE) != 0)
            rm_hostcall(SYS_futex, (long)&m->word, FUTEX_WAIT_PRIVATE, 2, 0, 0, 0);
    }
    /* Who waits for the lock may see it get another rank (window.pyx: block_get). */
    static inline const rm_lock_order *rm_mutex_order(rm_mutex *m)
    {
        return __atomic_load_n(&m->order, __ATOMIC_RELAXED);
    }
    static inline uint64_t rm_mutex_rank(rm_mutex *m)
    {
        return __atomic_load_n(&m->rank, __ATOMIC_RELAXED);
    }
    static inline void rm_mutex_lock(rm_mutex *m)
    {
        if (rm_unlikely(rm_mutex_order(m) != NULL))
            rm_mutex_order(m)->taking(m, rm_mutex_rank(m), 0);
        if (!rm_mutex_try(m))
            rm_mutex_lock_slow(m);
    }
    static inline int rm_mutex_trylock(rm_mutex *m)
    {
        int got = rm_mutex_try(m);
        if (rm_unlikely(rm_mutex_order(m) != NULL) && got)
            rm_mutex_order(m)->taking(m, rm_mutex_rank(m), 1);
        return got;
    }
    static inline void rm_mutex_unlock(rm_mutex *m)
    {
        if (rm_unlikely(rm_mutex_order(m) != NULL))
            rm_mutex_order(m)->given(m);
        if (__atomic_exchange_n(&m->word, 0, __ATOMIC_RELEASE) == 2)
            rm_hostcall(SYS_futex, (long)&m->word, FUTEX_WAKE_PRIVATE, 1, 0, 0, 0);
    }
    #endif
    """
    ctypedef struct mutex "rm_mutex":
        int word
        uint64_t rank
        const lock_order* order

    int host_map "rm_host_map"(uint64_t at, uint64_t length, int prot, int fd,
                               uint64_t offset) noexcept nogil
    int host_map_closed "rm_host_map_closed"(uint64_t at, uint64_t length, int fd,
                                             uint64_t offset) noexcept nogil
    int host_map_empty "rm_host_map_empty"(uint64_t at, uint64_t length, int fd,
                                           uint64_t offset) noexcept nogil
    int host_map_private "rm_host_map_private"(uint64_t at, uint64_t length, int fd,
                                               uint64_t offset) noexcept nogil
    int host_map_zero "rm_host_map_zero"(uint64_t at, uint64_t length) noexcept nogil
    int host_clear "rm_host_clear"(uint64_t at, uint64_t length) noexcept nogil
    uint64_t host_reserve "rm_host_reserve"(uint64_t length, int prot) noexcept nogil
    int host_protect "rm_host_protect"(uint64_t at, uint64_t length, int prot) noexcept nogil
    int host_unmap "rm_host_unmap"(uint64_t at, uint64_t length) noexcept nogil
    int host_discard "rm_host_discard"(uint64_t at, uint64_t length) noexcept nogil
    int host_nodump "rm_host_nodump"(uint64_t at, uint64_t length) noexcept nogil
    int64_t gettid "rm_gettid"() noexcept nogil
    uint64_t thread_ident "rm_thread_ident"() noexcept nogil

    bint mutex_trylock "rm_mutex_trylock"(mutex* m) noexcept nogil
    void mutex_lock "rm_mutex_lock"(mutex* m) noexcept nogil
    void mutex_unlock "rm_mutex_unlock"(mutex* m) noexcept nogil
