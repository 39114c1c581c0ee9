# cython: language_level=3
"""kswapd's threads; what they do is on the kernel side, which starts none."""
from libc.stdint cimport uint64_t

from realmem._kernel.kswapd cimport kswapd, wake_kswapds, wake_to_stop
from realmem._kernel.mm_types cimport mmu

cdef extern from *:
    """
    #include <pthread.h>
    #include <signal.h>
    /* Signals are for threads that Python knows; its stack is its own. */
    static int rm_start_thread(uint64_t *thread, void *(*work)(void *), void *data)
    {
        pthread_attr_t attr;
        sigset_t all, before;
        pthread_t made = 0;
        int rc = pthread_attr_init(&attr);
        if (rc)
            return rc;
        pthread_attr_setstacksize(&attr, 512 << 10);
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);
        rc = pthread_create(&made, &attr, work, data);
        pthread_sigmask(SIG_SETMASK, &before, NULL);
        pthread_attr_destroy(&attr);
        *thread = (uint64_t)made;
        return rc;
    }
    static void rm_join_thread(uint64_t thread) { pthread_join((pthread_t)thread, NULL); }
    """
    int start_thread "rm_start_thread"(uint64_t* thread, void* (*work)(void*) noexcept nogil,
                                       void* data) nogil
    void join_thread "rm_join_thread"(uint64_t thread) nogil


cdef int kswapd_run(mmu* u) noexcept nogil:
    cdef int nid
    cdef int rc
    for nid in range(u.m.nr_nodes):
        u.kswapd[nid].owner = u
        rc = start_thread(&u.kswapd[nid].thread, kswapd, &u.kswapd[nid])
        if rc != 0:
            kswapd_stop(u)
            return rc
        u.kswapd[nid].running = 1
    u.m.wake_kswapd = wake_kswapds
    return 0


cdef void kswapd_stop(mmu* u) noexcept nogil:
    cdef int nid
    u.m.wake_kswapd = NULL
    for nid in range(u.m.nr_nodes):
        if u.kswapd[nid].running:
            wake_to_stop(&u.kswapd[nid])
            join_thread(u.kswapd[nid].thread)
            u.kswapd[nid].running = 0


cdef void kswapd_forget(mmu* u) noexcept nogil:
    cdef int nid
    for nid in range(u.m.nr_nodes):
        u.kswapd[nid].running = 0
