# userfaultfd's calls: minor faults on shared memory, told by SIGBUS (Documentation/admin-guide/mm/
# userfaultfd.rst).  A fill or a change of access splits no host VMA, and takes the host's
# mmap_lock for reading only.  Signal-safe; at and length are whole pages.
from libc.stdint cimport uint64_t

from realmem._kernel.host_calls cimport mutex     # and with it rm_hostcall()

cdef extern from *:
    """
    #include <fcntl.h>
    #include <linux/userfaultfd.h>
    #include <sys/ioctl.h>

    /* Headers may be older than the kernel. */
    #ifndef UFFD_USER_MODE_ONLY
    #define UFFD_USER_MODE_ONLY 1
    #endif
    #define RM_UFFD_SIGBUS (1ull << 7)
    #define RM_UFFD_MINOR_SHMEM (1ull << 10)
    #define RM_UFFD_WP_SHMEM (1ull << 12)
    #define RM_UFFD_NEEDED (RM_UFFD_SIGBUS | RM_UFFD_MINOR_SHMEM | RM_UFFD_WP_SHMEM)
    #define RM_UFFD_MODE (1ull << 1 | 1ull << 2)        /* WP, MINOR */
    struct rm_uffd_continue { uint64_t start, len, mode; int64_t mapped; };
    #define RM_UFFDIO_CONTINUE _IOWR(UFFDIO, 0x07, struct rm_uffd_continue)
    struct rm_uffd_protect { uint64_t start, len, mode; };
    #define RM_UFFDIO_WRITEPROTECT _IOWR(UFFDIO, 0x06, struct rm_uffd_protect)

    /* A descriptor with all that is needed, or -errno; -ENOSYS where the kernel lacks a part. */
    static inline int rm_uffd_open(void)
    {
        struct uffdio_api api = { .api = UFFD_API, .features = RM_UFFD_NEEDED };
        int fd = (int)rm_hostcall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY,
                                  0, 0, 0, 0, 0);
        if (fd < 0)
            return fd;
        if (rm_hostcall(SYS_ioctl, fd, (long)UFFDIO_API, (long)&api, 0, 0, 0) == 0)
            return fd;
        rm_hostcall(SYS_close, fd, 0, 0, 0, 0, 0);
        return -ENOSYS;
    }
    static inline int rm_uffd_register(int fd, uint64_t at, uint64_t len)
    {
        struct uffdio_register r = { .range = { at, len }, .mode = RM_UFFD_MODE };
        return (int)rm_hostcall(SYS_ioctl, fd, (long)UFFDIO_REGISTER, (long)&r, 0, 0, 0);
    }
    /* What is there already stays as it is. */
    static inline int rm_uffd_continue(int fd, uint64_t at, uint64_t len, int readonly)
    {
        struct rm_uffd_continue c = { at, len, readonly ? 2 : 0, 0 };
        while (c.len) {
            int rc;
            c.mapped = 0;
            rc = (int)rm_hostcall(SYS_ioctl, fd, (long)RM_UFFDIO_CONTINUE, (long)&c, 0, 0, 0);
            if (rc == 0)
                return 0;
            if (c.mapped > 0)
                c.start += c.mapped, c.len -= c.mapped;
            else if (rc == -EEXIST)
                c.start += 4096, c.len -= 4096;
            else if (rc != -EAGAIN)
                return rc;
        }
        return 0;
    }
    static inline int rm_uffd_protect(int fd, uint64_t at, uint64_t len, int readonly)
    {
        struct rm_uffd_protect p = { at, len, readonly };
        int rc;
        do
            rc = (int)rm_hostcall(SYS_ioctl, fd, (long)RM_UFFDIO_WRITEPROTECT, (long)&p, 0, 0, 0);
        while (rc == -EAGAIN);
        return rc;
    }
    """
    int uffd_open "rm_uffd_open"() noexcept nogil
    int uffd_register "rm_uffd_register"(int fd, uint64_t at, uint64_t length) noexcept nogil
    int uffd_continue "rm_uffd_continue"(int fd, uint64_t at, uint64_t length,
                                         bint readonly) noexcept nogil
    int uffd_protect "rm_uffd_protect"(int fd, uint64_t at, uint64_t length,
                                       bint readonly) noexcept nogil
