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
    enum: MADV_DONTDUMP
    long membarrier "rm_membarrier"(int cmd) noexcept nogil
    enum: MEMBARRIER_CMD_PRIVATE_EXPEDITED
    enum: MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED
