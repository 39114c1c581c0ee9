# System calls and structures that Cython's posix/* and libc/* lack.
from libc.stdint cimport uint64_t

cdef extern from *:
    """
    #ifndef REALMEM_LINUX_H
    #define REALMEM_LINUX_H
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <errno.h>
    #include <linux/membarrier.h>
    #include <sched.h>
    #include <sys/mman.h>
    #include <sys/syscall.h>
    #include <unistd.h>
    static inline long rm_mbind(void *addr, unsigned long len, int mode,
                                const unsigned long *mask, unsigned long maxnode, unsigned flags)
    { return syscall(SYS_mbind, addr, len, mode, mask, maxnode, flags); }
    static inline long rm_move_pages(int pid, unsigned long count, void **pages,
                                     const int *nodes, int *status, int flags)
    { return syscall(SYS_move_pages, pid, count, pages, nodes, status, flags); }
    static inline long rm_get_mempolicy(int *mode, unsigned long *mask, unsigned long maxnode,
                                        void *addr, unsigned long flags)
    { return syscall(SYS_get_mempolicy, mode, mask, maxnode, addr, flags); }
    static inline long rm_membarrier(int cmd)
    { return syscall(SYS_membarrier, cmd, 0, 0); }
    #endif
    """
    # Each returns -1 with errno set on failure, as the system call does.
    long mbind "rm_mbind"(void* addr, unsigned long length, int mode, const unsigned long* mask,
                          unsigned long maxnode, unsigned int flags) noexcept nogil
    long move_pages "rm_move_pages"(int pid, unsigned long count, void** pages, const int* nodes,
                                    int* status, int flags) noexcept nogil
    long get_mempolicy "rm_get_mempolicy"(int* mode, unsigned long* mask, unsigned long maxnode,
                                          void* addr, unsigned long flags) noexcept nogil
    void* mmap(void* addr, size_t length, int prot, int flags, int fd, long offset) noexcept nogil
    int munmap(void* addr, size_t length) noexcept nogil
    int mprotect(void* addr, size_t length, int prot) noexcept nogil
    int madvise(void* addr, size_t length, int advice) noexcept nogil
    int sched_yield() noexcept nogil
    enum: PROT_NONE
    enum: PROT_READ
    enum: PROT_WRITE
    enum: MAP_PRIVATE
    enum: MAP_SHARED
    enum: MAP_FIXED
    enum: MAP_ANONYMOUS
    enum: MAP_NORESERVE
    void* MAP_FAILED
    enum: MADV_DONTFORK
    enum: MADV_DONTNEED
    enum: MADV_DONTDUMP
    long membarrier "rm_membarrier"(int cmd) noexcept nogil
    enum: MEMBARRIER_CMD_PRIVATE_EXPEDITED
    enum: MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED

# Mapping and populating (the pool); the values are the kernel's own, for older headers.
cdef extern from *:
    """
    #ifndef REALMEM_LINUX_MAP_H
    #define REALMEM_LINUX_MAP_H
    #include <fcntl.h>
    #include <sched.h>
    #include <signal.h>
    #include <sys/mman.h>
    #include <sys/prctl.h>
    #include <sys/wait.h>
    #ifndef MADV_POPULATE_WRITE
    #define MADV_POPULATE_WRITE 23
    #endif
    #ifndef SYS_close_range
    #define SYS_close_range 436
    #endif
    /* fork() without libc's at-fork handlers, and without SIGCHLD: see _core/pool.pyx.
       All arguments but the flags are 0, so their order, which differs between
       architectures, does not matter. */
    static inline long rm_clone_quietly(void)
    { return syscall(SYS_clone, 0ul, 0ul, 0ul, 0ul, 0ul); }
    static inline long rm_close_range(unsigned first, unsigned last)
    { return syscall(SYS_close_range, first, last, 0); }
    static inline long rm_setaffinity(unsigned long bytes, const void *mask)
    { return syscall(SYS_sched_setaffinity, 0, bytes, mask); }
    static inline void rm_exit(int status)
    { for (;;) syscall(SYS_exit_group, status); }
    #endif
    """
    long clone_quietly "rm_clone_quietly"() noexcept nogil
    long close_range "rm_close_range"(unsigned int first, unsigned int last) noexcept nogil
    long sched_setaffinity "rm_setaffinity"(unsigned long nbytes, const void* mask) noexcept nogil
    void exit_group "rm_exit"(int status) noexcept nogil
    int fallocate(int fd, int mode, long offset, long length) noexcept nogil
    enum: MADV_POPULATE_WRITE
    enum: MADV_HUGEPAGE
    enum: PR_SET_PDEATHSIG
    enum: WALL "__WALL"
