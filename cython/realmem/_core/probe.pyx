# cython: boundscheck=False, wraparound=False, cdivision=True
"""
Harmless tries of system calls that a host may refuse.

Each takes one page of its own or changes nothing, and gives 0 or an errno.
"""
from libc.errno cimport EINVAL, ENOMEM, errno
from libc.stdint cimport uint64_t
from libc.string cimport memset
from posix.mman cimport mlock as libc_mlock, munlock as libc_munlock
from posix.unistd cimport close

from realmem.linux cimport (
    MADV_POPULATE_WRITE, MAP_ANONYMOUS, MAP_FAILED, MAP_PRIVATE, PROT_READ, PROT_WRITE, madvise,
    mmap, munmap,
)
from realmem.linux cimport get_mempolicy as sys_get_mempolicy
from realmem.linux cimport mbind as sys_mbind
from realmem.linux cimport membarrier as sys_membarrier
from realmem.linux cimport move_pages as sys_move_pages

cdef extern from *:
    """
    #include <sys/ioctl.h>
    #include <stdint.h>
    #include <fcntl.h>
    /* linux/userfaultfd.h, of which old headers lack parts */
    struct rm_uffdio_api { uint64_t api, features, ioctls; };
    #define RM_UFFDIO_API _IOWR(0xAA, 0x3F, struct rm_uffdio_api)
    #ifndef SYS_userfaultfd
    #define SYS_userfaultfd -1
    #endif
    static inline int rm_userfaultfd(int flags)
    { return (int)syscall(SYS_userfaultfd, flags | O_CLOEXEC | O_NONBLOCK); }
    """
    ctypedef struct uffdio_api "struct rm_uffdio_api":
        uint64_t api
        uint64_t features
        uint64_t ioctls
    unsigned long UFFDIO_API "RM_UFFDIO_API"
    int ioctl(int fd, unsigned long request, void* argument) nogil
    int open_userfaultfd "rm_userfaultfd"(int flags) nogil

cdef enum:
    PAGE = 4096
    MPOL_BIND = 2
    MASK_WORDS = 64
    UFFD_API = 0xAA
    UFFD_USER_MODE_ONLY = 1


cdef char* new_page() noexcept nogil:
    cdef void* page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
    if page == MAP_FAILED:
        return NULL
    (<char*>page)[0] = 1
    return <char*>page


def mbind(unsigned int host_node):
    """Bind a page to a host node."""
    cdef unsigned long mask[MASK_WORDS]
    cdef char* page
    if host_node >= MASK_WORDS * 64:
        return EINVAL
    page = new_page()
    if page == NULL:
        return ENOMEM
    memset(mask, 0, sizeof(mask))
    mask[host_node // 64] = <unsigned long>1 << (host_node % 64)
    cdef int why = 0
    if sys_mbind(page, PAGE, MPOL_BIND, mask, MASK_WORDS * 64 + 1, 0) != 0:
        why = errno
    munmap(page, PAGE)
    return why


def move_pages():
    """Ask where a page is."""
    cdef char* page = new_page()
    cdef void* pages[1]
    cdef int status = 0
    cdef int why = 0
    if page == NULL:
        return ENOMEM
    pages[0] = page
    if sys_move_pages(0, 1, pages, NULL, &status, 0) != 0:
        why = errno
    munmap(page, PAGE)
    return why


def get_mempolicy():
    """Ask for the thread's policy."""
    cdef int mode = 0
    return 0 if sys_get_mempolicy(&mode, NULL, 0, NULL, 0) == 0 else errno


def mlock():
    """Lock a page."""
    cdef char* page = new_page()
    cdef int why = 0
    if page == NULL:
        return ENOMEM
    if libc_mlock(page, PAGE) != 0:
        why = errno
    else:
        libc_munlock(page, PAGE)
    munmap(page, PAGE)
    return why


def madv_populate():
    """Populate a page ahead of its use (Linux 5.14)."""
    cdef char* page = new_page()
    cdef int why = 0
    if page == NULL:
        return ENOMEM
    if madvise(page, PAGE, MADV_POPULATE_WRITE) != 0:
        why = errno
    munmap(page, PAGE)
    return why


def membarrier():
    """
    Ask which memory barriers there are.

    :return: (0, bits of MEMBARRIER_CMD_*), or (errno, 0).
    """
    cdef long commands = sys_membarrier(0)
    if commands < 0:
        return errno, 0
    return 0, commands


def userfaultfd(bint user_mode_only):
    """
    Open a userfaultfd and ask for its features.

    :param user_mode_only: for faults of user code only, which needs no privilege.
    :return: (0, bits of UFFD_FEATURE_*), or (errno, 0).
    """
    cdef int fd = open_userfaultfd(UFFD_USER_MODE_ONLY if user_mode_only else 0)
    cdef uffdio_api api
    cdef int why = 0
    if fd < 0:
        return errno, 0
    memset(&api, 0, sizeof(api))
    api.api = UFFD_API
    if ioctl(fd, UFFDIO_API, &api) != 0:
        why = errno
    close(fd)
    if why != 0:
        return why, 0
    return 0, api.features
