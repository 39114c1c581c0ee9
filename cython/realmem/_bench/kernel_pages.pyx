# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
"""The kernel's own faults, forks and loads on ordinary memory, beside which ours are shown."""
from libc.errno cimport errno
from libc.stdint cimport uint32_t, uint64_t

from realmem._bench.fault_loops import touch

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <errno.h>
    #include <sched.h>
    #include <signal.h>
    #include <stdint.h>
    #include <sys/mman.h>
    #include <sys/prctl.h>
    #include <sys/syscall.h>
    #include <sys/wait.h>
    #include <time.h>
    #include <unistd.h>

    static inline double rm_kernel_now(void)
    {
        struct timespec t;
        clock_gettime(CLOCK_MONOTONIC, &t);
        return t.tv_sec * 1e9 + t.tv_nsec;
    }

    #define RM_HUGE (2ul << 20)
    /* 2 MiB aligned. */
    static uint64_t rm_anon(uint64_t len, int huge, int shared)
    {
        uint64_t at;
        void *p = mmap(NULL, len + RM_HUGE, PROT_NONE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (p == MAP_FAILED)
            return 0;
        at = ((uint64_t)p + RM_HUGE - 1) & ~(RM_HUGE - 1);
        if (at != (uint64_t)p)
            munmap(p, at - (uint64_t)p);
        munmap((void *)(at + len), (uint64_t)p + RM_HUGE - at);
        if (mmap((void *)at, len, PROT_READ | PROT_WRITE,
                 (shared ? MAP_SHARED : MAP_PRIVATE) | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED,
                 -1, 0) == MAP_FAILED)
            return 0;
        madvise((void *)at, len, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
        return at;
    }

    /* A process that shares our memory copy-on-write and waits for the end of a pipe.  Made by
       the bare system call: libc's at-fork handlers, realmem's among them, are skipped, and
       the child makes system calls only. */
    static double rm_fork_ns;
    static int rm_sharer(int *end)
    {
        int fds[2];
        double begin;
        long pid;
        if (pipe(fds))
            return -1;
        begin = rm_kernel_now();
        pid = syscall(SYS_clone, (long)SIGCHLD, 0l, 0l, 0l, 0l);
        if (pid == 0) {
            char c;
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            close(fds[1]);
            while (read(fds[0], &c, 1) < 0 && errno == EINTR)
                ;
            syscall(SYS_exit_group, 0);
        }
        rm_fork_ns = rm_kernel_now() - begin;
        close(fds[0]);
        *end = fds[1];
        return (int)pid;
    }
    static void rm_sharer_end(int pid, int end)
    {
        close(end);
        while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
            ;
    }

    /* Processes that store to n pages of their own, all at once; the slowest's ns a page. */
    struct rm_meeting {
        volatile int arrived;
        volatile double ns[256];
    };
    static double rm_in_processes(const int *cpus, int processes, uint64_t n)
    {
        struct rm_meeting *m = mmap(NULL, sizeof *m, PROT_READ | PROT_WRITE,
                                    MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        double ns = 0;
        long pids[256];
        int i, status, failed = 0;
        if (m == MAP_FAILED)
            return -1;
        for (i = 0; i < processes; i++) {
            pids[i] = failed ? -1 : syscall(SYS_clone, (long)SIGCHLD, 0l, 0l, 0l, 0l);
            if (pids[i] == 0) {
                cpu_set_t set;
                uint64_t at = rm_anon(n * 4096, 0, 0), k;
                double begin;
                prctl(PR_SET_PDEATHSIG, SIGKILL);
                CPU_ZERO(&set);
                CPU_SET(cpus[i], &set);
                syscall(SYS_sched_setaffinity, 0, sizeof set, &set);
                __atomic_add_fetch(&m->arrived, 1, __ATOMIC_SEQ_CST);
                while (m->arrived < processes)
                    ;
                begin = rm_kernel_now();
                for (k = 0; at && k < n; k++)
                    *(volatile uint64_t *)(at + 4096 * k) = k;
                m->ns[i] = (rm_kernel_now() - begin) / n;
                syscall(SYS_exit_group, at == 0);
            }
            if (pids[i] < 0 && !failed) {       /* those that wait for it need not */
                failed = 1;
                __atomic_add_fetch(&m->arrived, processes, __ATOMIC_SEQ_CST);
            }
        }
        for (i = 0; i < processes; i++) {
            if (pids[i] < 0)
                continue;
            while (waitpid((int)pids[i], &status, 0) < 0 && errno == EINTR)
                ;
            failed |= status != 0;
            if (m->ns[i] > ns)
                ns = m->ns[i];
        }
        munmap(m, sizeof *m);
        return failed ? -1 : ns;
    }

    static double rm_load_all(const uint64_t *addresses, uint64_t n)
    {
        double begin = rm_kernel_now();
        uint64_t i;
        for (i = 0; i < n; i++)
            (void)*(volatile const char *)addresses[i];
        return (rm_kernel_now() - begin) / n;
    }
    """
    uint64_t anon "rm_anon"(uint64_t length, bint huge, bint shared) noexcept nogil
    int sharer "rm_sharer"(int* end) noexcept nogil
    void sharer_end "rm_sharer_end"(int pid, int end) noexcept nogil
    double fork_ns "rm_fork_ns"
    double processes_ns "rm_in_processes"(const int* cpus, int processes,
                                          uint64_t n) noexcept nogil
    double load_all_ns "rm_load_all"(const uint64_t* addresses, uint64_t n) noexcept nogil
    int munmap(void* addr, size_t length) noexcept nogil
    int madvise(void* addr, size_t length, int advice) noexcept nogil
    int MADV_DOFORK, MADV_DONTFORK


cdef class KernelPages:
    """
    Ordinary anonymous memory of this process: the kernel's own faults.

    :param n: pages.
    :param huge: ask for 2 MiB pages, or for none.
    :param shared: MAP_SHARED.
    """

    cdef readonly uint64_t address
    cdef uint64_t n

    def __cinit__(self, uint64_t n, bint huge=False, bint shared=False):
        self.n = n
        self.address = anon(n * 4096, huge, shared)
        if self.address == 0:
            raise MemoryError(f"no {n} pages of address space")

    def close(self):
        """Unmap it."""
        if self.address != 0:
            munmap(<void*>self.address, self.n * 4096)
            self.address = 0

    def __dealloc__(self):
        self.close()

    def touch(self, bint write, const uint32_t[::1] order=None):
        """Touch every page; ns a page."""
        return touch(self.address, self.n, write, order)

    def inherit(self, bint wanted):
        """Whether forks are to share it."""
        if madvise(<void*>self.address, self.n * 4096,
                   MADV_DOFORK if wanted else MADV_DONTFORK) != 0:
            raise OSError(errno, "madvise of memory to fork")


cdef class Sharer:
    """A host process that shares this one's memory copy-on-write until close()."""

    cdef int pid
    cdef int end
    cdef readonly double fork_ns

    def __cinit__(self):
        self.pid = sharer(&self.end)
        if self.pid < 0:
            raise OSError(errno, "cannot fork")
        self.fork_ns = fork_ns

    def close(self):
        """End it."""
        if self.pid > 0:
            with nogil:
                sharer_end(self.pid, self.end)
            self.pid = 0

    def __dealloc__(self):
        self.close()


def in_processes(cpus, uint64_t n):
    """
    Store to n pages of fresh memory in several host processes at once.

    :param cpus: one CPU for each process; 256 at most.
    :return: ns a page, of the slowest.
    :raises OSError: the host refuses a process or its memory.
    """
    cdef int numbers[256]
    cdef int i, count = len(cpus)
    cdef double ns
    if count > 256:
        raise ValueError(f"{count} processes, 256 at most")
    for i in range(count):
        numbers[i] = cpus[i]
    with nogil:
        ns = processes_ns(numbers, count, n)
    if ns < 0:
        raise OSError(errno, "cannot fork")
    return ns


def load_all(const uint64_t[::1] addresses not None):
    """
    Load a byte at each address.

    :return: ns an access.
    """
    cdef uint64_t n = addresses.shape[0]
    cdef double ns
    if n == 0:
        return 0.0
    with nogil:
        ns = load_all_ns(&addresses[0], n)
    return ns
