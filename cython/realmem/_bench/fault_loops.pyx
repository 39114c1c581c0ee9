# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
"""
Loops that fault: timed, or storming, always without the GIL.

Each timed loop touches one word of each of `n` pages, `stride` bytes apart, and gives ns a page.
"""
from libc.stdint cimport int64_t, uint32_t, uint64_t

from realmem.compiler cimport store_int

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <pthread.h>
    #include <signal.h>
    #include <stdint.h>
    #include <string.h>
    #include <sys/mman.h>
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

    /* One word of each page is this thread's: it must read what it stored last.  Each pass
       raises them by one, from first up to last.  Returns how many stores were lost. */
    static int64_t rm_storm(uint64_t at, uint64_t n, uint64_t word, uint64_t first,
                            uint64_t last, int *stop, uint64_t *rounds_ret)
    {
        int64_t lost = 0;
        uint64_t round = first;
        while (round != last && !__atomic_load_n(stop, __ATOMIC_ACQUIRE)) {
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
    static int rm_storm_stop;
    """
    double touch_pages "rm_touch"(uint64_t at, uint64_t n, const uint32_t* order,
                                  bint write) noexcept nogil
    uint64_t foreign_install "rm_foreign_install"() noexcept nogil
    int64_t foreign_served "rm_foreign_served"
    int store_in_thread "rm_store_in_thread"(uint64_t at, uint64_t value) noexcept nogil
    int64_t storm_loop "rm_storm"(uint64_t at, uint64_t n, uint64_t word, uint64_t first,
                                  uint64_t last, int* stop, uint64_t* rounds_ret) noexcept nogil
    int storm_stop "rm_storm_stop"


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


# ---- for tests --------------------------------------------------------------

def storm(uint64_t at, uint64_t n, uint64_t word, uint64_t first=0, uint64_t rounds=0):
    """
    Store increasing numbers in one word of each page until stop_storm(), or for some rounds.

    :param at: host address of the first page.
    :param n: pages.
    :param word: which word of each page is the calling thread's own.
    :param first: what the words hold now.
    :param rounds: how often to pass all pages; 0 is without end.
    :return: (lost stores, last number)
    """
    cdef uint64_t last = first + rounds if rounds else first - 1
    cdef uint64_t reached = 0
    cdef int64_t lost
    with nogil:
        lost = storm_loop(at, n, word, first, last, &storm_stop, &reached)
    return lost, reached


def stop_storm(bint stop=True):
    """End every storm, or let storms begin."""
    store_int(&storm_stop, stop)


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
