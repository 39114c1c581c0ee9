# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
"""
Loops that fault: timed, or storming, always without the GIL.

Each timed loop touches one word of each of `n` pages, `stride` bytes apart, and gives ns a page.
"""
from libc.errno cimport errno
from libc.stdint cimport int64_t, uint32_t, uint64_t

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <errno.h>
    #include <pthread.h>
    #include <signal.h>
    #include <stdint.h>
    #include <string.h>
    #include <sys/mman.h>
    #include <sys/prctl.h>
    #include <sys/syscall.h>
    #include <sys/wait.h>
    #include <time.h>
    #include <ucontext.h>
    #include <unistd.h>

    static inline double rm_now(void)
    {
        struct timespec t;
        clock_gettime(CLOCK_MONOTONIC, &t);
        return t.tv_sec * 1e9 + t.tv_nsec;
    }

    /* In page order, or scattered by a permutation of page numbers. */
    static double rm_touch(uint64_t at, uint64_t n, const uint32_t *order, int write)
    {
        double begin = rm_now();
        uint64_t i;
        for (i = 0; i < n; i++) {
            volatile uint64_t *p = (volatile uint64_t *)(at + 4096 * (order ? order[i] : i));
            if (write)
                *p = i + 1;
            else
                (void)*p;
        }
        return (rm_now() - begin) / n;
    }

    /* Ordinary anonymous memory, 4 KiB pages only. */
    static uint64_t rm_anon(uint64_t len)
    {
        void *p = mmap(NULL, len, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (p == MAP_FAILED)
            return 0;
        madvise(p, len, MADV_NOHUGEPAGE);
        return (uint64_t)p;
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
        begin = rm_now();
        pid = syscall(SYS_clone, (long)SIGCHLD, 0l, 0l, 0l, 0l);
        if (pid == 0) {
            char c;
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            close(fds[1]);
            while (read(fds[0], &c, 1) < 0 && errno == EINTR)
                ;
            syscall(SYS_exit_group, 0);
        }
        rm_fork_ns = rm_now() - begin;
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

    /* The floor: a handler that makes the same host call as ours and does nothing else. */
    static struct sigaction rm_before;
    static int rm_floor_fd, rm_floor_how;
    static uint64_t rm_floor_base;
    static char rm_floor_from[4096] __attribute__((aligned(4096)));
    static char rm_floor_to[4096] __attribute__((aligned(4096)));
    static void rm_floor_handler(int sig, siginfo_t *info, void *context)
    {
        uint64_t page = (uint64_t)info->si_addr & ~4095ull;
        (void)sig, (void)context;
        if (rm_floor_how == 0)
            mprotect((void *)page, 4096, PROT_READ | PROT_WRITE);
        else {
            if (rm_floor_how == 2) {
                memcpy(rm_floor_to, rm_floor_from, 4096);
                __asm__ __volatile__("" ::: "memory");
            }
            mmap((void *)page, 4096, PROT_READ | PROT_WRITE,
                 MAP_SHARED | MAP_FIXED | MAP_POPULATE, rm_floor_fd, page - rm_floor_base);
        }
    }
    static double rm_floor(uint64_t n, const uint32_t *order, int how)
    {
        struct sigaction sa;
        double ns = -1;
        void *p;
        rm_floor_how = how;
        rm_floor_fd = (int)syscall(SYS_memfd_create, "realmem-floor", 1u);
        if (rm_floor_fd < 0)
            return -1;
        if (ftruncate(rm_floor_fd, n * 4096) == 0) {
            /* populated beforehand, as the pool is */
            p = mmap(NULL, n * 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE,
                     rm_floor_fd, 0);
            if (p != MAP_FAILED) {
                if (how != 0) {
                    void *w = mmap(NULL, n * 4096, PROT_NONE,
                                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
                    munmap(p, n * 4096);
                    p = w;
                } else {
                    mprotect(p, n * 4096, PROT_NONE);
                }
                rm_floor_base = (uint64_t)p;
                memset(&sa, 0, sizeof sa);
                sa.sa_sigaction = rm_floor_handler;
                sa.sa_flags = SA_SIGINFO | SA_ONSTACK;
                sigfillset(&sa.sa_mask);
                sigaction(SIGSEGV, &sa, &rm_before);
                ns = rm_touch((uint64_t)p, n, order, 1);
                sigaction(SIGSEGV, &rm_before, NULL);
                munmap(p, n * 4096);
            }
        }
        close(rm_floor_fd);
        return ns;
    }

    /* A C handler of somebody else's, for tests: it opens the pages of its own region. */
    static uint64_t rm_foreign_base;
    static volatile int64_t rm_foreign_served;
    static struct sigaction rm_foreign_before;
    static void rm_foreign_handler(int sig, siginfo_t *info, void *context)
    {
        uint64_t at = (uint64_t)info->si_addr;
        sigset_t now;
        if (at - rm_foreign_base < 64 * 4096
                && ((ucontext_t *)context)->uc_mcontext.gregs[REG_CR2] == (long long)at
                && pthread_sigmask(SIG_SETMASK, NULL, &now) == 0 && sigismember(&now, sig)
                && sigismember(&now, SIGUSR2) && !sigismember(&now, SIGUSR1)) {
            mprotect((void *)(at & ~4095ull), 4096, PROT_READ | PROT_WRITE);
            rm_foreign_served++;
            return;
        }
        signal(SIGSEGV, SIG_DFL);
    }
    static uint64_t rm_foreign_install(void)
    {
        struct sigaction sa;
        void *p = mmap(NULL, 64 * 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        rm_foreign_base = (uint64_t)p;
        memset(&sa, 0, sizeof sa);
        sa.sa_sigaction = rm_foreign_handler;
        sa.sa_flags = SA_SIGINFO;
        sigemptyset(&sa.sa_mask);
        sigaddset(&sa.sa_mask, SIGUSR2);
        sigaction(SIGSEGV, &sa, &rm_foreign_before);
        return rm_foreign_base;
    }

    static uint64_t rm_store_args[2];
    static void *rm_store_thread(void *arg)
    {
        (void)arg;
        *(volatile uint64_t *)rm_store_args[0] = rm_store_args[1];
        return NULL;
    }
    static int rm_store_in_thread(uint64_t at, uint64_t value)
    {
        pthread_t t;
        rm_store_args[0] = at;
        rm_store_args[1] = value;
        if (pthread_create(&t, NULL, rm_store_thread, NULL))
            return -1;
        pthread_join(t, NULL);
        return 0;
    }

    /* One word of each page is this thread's: it must read what it stored last.  Returns how
       many stores were lost; rounds_ret counts the passes. */
    static int64_t rm_storm(uint64_t at, uint64_t n, uint64_t word, uint64_t first,
                            volatile int *stop, uint64_t *rounds_ret)
    {
        int64_t lost = 0;
        uint64_t round = first;
        while (!__atomic_load_n(stop, __ATOMIC_ACQUIRE)) {
            uint64_t i;
            for (i = 0; i < n; i++) {
                volatile uint64_t *p = (volatile uint64_t *)(at + 4096 * i) + word;
                if (*p != round)
                    lost++;
                *p = round + 1;
            }
            round++;
        }
        *rounds_ret = round;
        return lost;
    }
    static volatile int rm_storm_stop;
    """
    double touch_pages "rm_touch"(uint64_t at, uint64_t n, const uint32_t* order,
                                  bint write) noexcept nogil
    uint64_t anon "rm_anon"(uint64_t length) noexcept nogil
    int sharer "rm_sharer"(int* end) noexcept nogil
    void sharer_end "rm_sharer_end"(int pid, int end) noexcept nogil
    double fork_ns "rm_fork_ns"
    double floor_ns "rm_floor"(uint64_t n, const uint32_t* order, int how) noexcept nogil
    uint64_t foreign_install "rm_foreign_install"() noexcept nogil
    int64_t foreign_served "rm_foreign_served"
    int store_in_thread "rm_store_in_thread"(uint64_t at, uint64_t value) noexcept nogil
    int64_t storm_loop "rm_storm"(uint64_t at, uint64_t n, uint64_t word, uint64_t first,
                                  volatile int* stop, uint64_t* rounds_ret) noexcept nogil
    volatile int storm_stop "rm_storm_stop"
    int munmap(void* addr, size_t length) noexcept nogil


def touch(uint64_t at, uint64_t n, bint write, const uint32_t[::1] order=None):
    """
    Touch a word of each page.

    :param at: host address of the first page.
    :param n: pages.
    :param write: store, or load.
    :param order: permutation of page numbers; None goes up.
    :return: ns a page.
    """
    cdef const uint32_t* scattered = &order[0] if order is not None else NULL
    cdef double ns
    with nogil:
        ns = touch_pages(at, n, scattered, write)
    return ns


def floor(uint64_t n, str how, const uint32_t[::1] order=None):
    """
    Time a bare handler that makes one host call a fault and nothing else.

    :param how: ``"mprotect"`` in a run mapped beforehand, ``"mmap"`` of a memfd page, or
        ``"copy+mmap"``.
    :return: ns a page.
    :raises OSError: the host refuses the memory.
    """
    cdef const uint32_t* scattered = &order[0] if order is not None else NULL
    cdef double ns
    cdef int kind = ("mprotect", "mmap", "copy+mmap").index(how)
    with nogil:
        ns = floor_ns(n, scattered, kind)
    if ns < 0:
        raise OSError(errno, "no memory for the floor of faults")
    return ns


cdef class KernelPages:
    """
    Ordinary anonymous memory of this process: the kernel's own faults.

    :param n: pages.
    """

    cdef readonly uint64_t address
    cdef uint64_t n

    def __cinit__(self, uint64_t n):
        self.n = n
        self.address = anon(n * 4096)
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


# ---- for tests --------------------------------------------------------------

def storm(uint64_t at, uint64_t n, uint64_t word, uint64_t first=0):
    """
    Store increasing numbers in one word of each page until stop_storm().

    :param at: host address of the first page.
    :param n: pages.
    :param word: which word of each page is the calling thread's own.
    :param first: what the words hold now.
    :return: (lost stores, last number)
    """
    cdef uint64_t rounds = 0
    cdef int64_t lost
    with nogil:
        lost = storm_loop(at, n, word, first, &storm_stop, &rounds)
    return lost, rounds


def stop_storm(bint stop=True):
    """End every storm, or let storms begin."""
    global storm_stop
    storm_stop = stop


def store_in_new_thread(uint64_t at, uint64_t value):
    """Store a word from a thread that Python does not know."""
    with nogil:
        store_in_thread(at, value)


cdef class ForeignHandler:
    """Another library's SIGSEGV handler, and a region whose faults it serves."""

    cdef readonly uint64_t base

    def __cinit__(self):
        self.base = foreign_install()

    def store(self, uint64_t offset, uint64_t value):
        """Store a word in the region."""
        (<volatile uint64_t*>(self.base + offset))[0] = value

    def load(self, uint64_t offset):
        """Load a word of the region."""
        return (<uint64_t*>(self.base + offset))[0]

    @property
    def served(self):
        """Faults it served."""
        return foreign_served
