# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
# cython: initializedcheck=False, nonecheck=False, profile=False, linetrace=False
# The handler.  It is written in C's subset of Cython because it runs between two instructions
# of any thread: with the GIL or without, inside malloc or free, on an alternate stack of a
# few KiB.  So it calls nothing but the kernel side, takes only locks whose holders never
# touch a window and never wait for the GIL, and leaves errno and the context as they were.
#
# Everything but SIGSEGV is blocked while it runs.  SIGSEGV is not (SA_NODEFER): a fault
# inside the handler would otherwise kill the process without a word; so it is seen, named on
# stderr, and passed on to whoever prints tracebacks.
from libc.errno cimport errno
from libc.stdint cimport int32_t, int64_t, uint64_t

from realmem._kernel.arch_x86_64 cimport cycles, fault_access, fault_ip
from realmem._kernel.fault cimport handle_mm_fault_locked
from realmem._kernel.host_calls cimport gettid, mutex_lock, mutex_unlock, thread_ident
from realmem._kernel.mm_types cimport (
    FAULT_ACCERR, FAULT_EXEC, FAULT_MAPERR, FAULT_OK, FAULT_OOM, MM_LIVE, NR_FAULT_RECORDS,
    RECORD_READY, VM_ACCESS, fault_record, is_kernel_mm, mm_struct, mmu, vma_slot, window,
)
from realmem._kernel.percpu cimport borrow_area, count_vm_event, return_area
from realmem._kernel.spare cimport spare_take
from realmem._kernel.tlb cimport scratch_map_locked
from realmem._kernel.vmaindex cimport vma_find
from realmem._kernel.vmscan cimport reclaim_begins, reclaim_ends, reclaim_for_fault
from realmem._kernel.window cimport window_covering_locked, window_lookup
from realmem.compiler cimport (
    SEQ_CST, atomic64_add_return, atomic_add_return, likely, store_int, unlikely,
)
from realmem.types cimport HOST_FORBIDDEN, HOST_SIGSEGV, cpu_area, machine

cdef extern from *:
    """
    #include <signal.h>
    #include <string.h>
    #include <unistd.h>

    /* How deep this thread is in the handler.  Initial-exec: reading it calls nothing. */
    static __thread int rm_depth __attribute__((tls_model("initial-exec")));
    /* Who took SIGSEGV after us may hand faults back to us as its own predecessor (faulthandler
       does): then a fault that it does not end would go round for ever.  So the last fault that
       this thread passed on is remembered, and whether it is passing one on right now.  One that
       comes again at once, a hundred times, is served by nobody; a collector that protects its
       pages again and again may well serve the same store many times, but does more between. */
    static __thread uint64_t rm_chained_ip __attribute__((tls_model("initial-exec")));
    static __thread uint64_t rm_chained_addr __attribute__((tls_model("initial-exec")));
    static __thread uint64_t rm_chained_at __attribute__((tls_model("initial-exec")));
    static __thread int rm_chained_times __attribute__((tls_model("initial-exec")));
    static __thread int rm_chaining __attribute__((tls_model("initial-exec")));

    /* Of SIGSEGV, and of SIGBUS where userfaultfd tells by it. */
    static struct sigaction rm_saved[2];        /* whom to chain to */
    static volatile int rm_retaken[2];          /* rm_saved came after us */
    #define rm_which(sig) ((sig) == SIGBUS)

    static inline int rm_get_depth(void) { return *(volatile int *)&rm_depth; }
    static inline void rm_set_depth(int d) { *(volatile int *)&rm_depth = d; }

    static inline int rm_claim(int *state)
    {
        int free = 0;
        return __atomic_compare_exchange_n(state, &free, 1, 0,
                                           __ATOMIC_ACQ_REL, __ATOMIC_RELAXED);
    }

    static int rm_save_action(int sig, int retaken)
    {
        rm_retaken[rm_which(sig)] = retaken;
        return sigaction(sig, NULL, &rm_saved[rm_which(sig)]) ? -errno : 0;
    }
    static int rm_install(int sig, void (*fn)(int, siginfo_t *, void *))
    {
        struct sigaction sa;
        memset(&sa, 0, sizeof sa);
        sa.sa_sigaction = fn;
        sa.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
        /* Not sigfillset(), which leaves glibc's own out: a thread that is cancelled in here would
           keep its locks. */
        memset(&sa.sa_mask, 0xff, sizeof sa.sa_mask);
        sigdelset(&sa.sa_mask, SIGSEGV);
        sigdelset(&sa.sa_mask, SIGBUS);
        return sigaction(sig, &sa, NULL) ? -errno : 0;
    }
    static int rm_uninstall(int sig)
    {
        return sigaction(sig, &rm_saved[rm_which(sig)], NULL) ? -errno : 0;
    }
    static int rm_owns(int sig, void (*fn)(int, siginfo_t *, void *))
    {
        struct sigaction now;
        return sigaction(sig, NULL, &now) == 0 && (now.sa_flags & SA_SIGINFO)
               && now.sa_sigaction == fn;
    }
    static void rm_default(int sig, const siginfo_t *info)
    {
        struct sigaction sa;
        memset(&sa, 0, sizeof sa);
        sa.sa_handler = SIG_DFL;
        sigaction(sig, &sa, NULL);
        if (info->si_code <= 0)         /* sent, not met: the instruction would go on */
            raise(sig);
        /* else: returning runs the instruction again, and the default action ends it */
    }
    /* Pass a signal on as if the saved action had been installed: its mask, its form, the
       context untouched. */
    static void rm_chain(int sig, siginfo_t *info, void *context, uint64_t ip)
    {
        struct sigaction to = rm_saved[rm_which(sig)];
        uint64_t addr = (uint64_t)info->si_addr;
        sigset_t mask, before;
        if (rm_retaken[rm_which(sig)]) {
            if (rm_chained_ip != ip || rm_chained_addr != addr
                    || rm_cycles() - rm_chained_at > 1 << 22)
                rm_chained_times = 0;
            rm_chained_ip = ip;
            rm_chained_addr = addr;
            if (rm_chaining || ++rm_chained_times > 100)
                to.sa_handler = SIG_DFL, to.sa_flags = 0;
        }
        if (!(to.sa_flags & SA_SIGINFO) && (to.sa_handler == SIG_DFL
                || (to.sa_handler == SIG_IGN && info->si_code > 0))) {
            rm_default(sig, info);
            return;
        }
        if (!(to.sa_flags & SA_SIGINFO) && to.sa_handler == SIG_IGN)
            return;
        mask = ((ucontext_t *)context)->uc_sigmask;
        for (int i = 1; i < NSIG; i++)
            if (sigismember(&to.sa_mask, i) == 1)
                sigaddset(&mask, i);
        if (!(to.sa_flags & SA_NODEFER))
            sigaddset(&mask, sig);
        pthread_sigmask(SIG_SETMASK, &mask, &before);
        rm_chaining++;
        if (to.sa_flags & SA_SIGINFO)
            to.sa_sigaction(sig, info, context);
        else
            to.sa_handler(sig);
        rm_chaining--;
        rm_chained_at = rm_cycles();
        pthread_sigmask(SIG_SETMASK, &before, NULL);
    }
    /* A fault of our own making, to time the signal alone (rm_probe). */
    static char *rm_probe_page;
    static int64_t rm_probe_tid;
    static volatile uint64_t rm_probe_in, rm_probe_out;

    static void rm_probe_serve(uint64_t entered)
    {
        rm_probe_in = entered;
        rm_host_protect((uint64_t)rm_probe_page, 4096, PROT_READ | PROT_WRITE);
        rm_probe_out = rm_cycles();
    }
    /* Cycles between a store and the handler, and between the handler and the store's end.
       Returns how many of n could be timed. */
    static int rm_probe(uint64_t *samples, int n)
    {
        char *at = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        uint64_t before;
        int i = 0;
        if (at == MAP_FAILED)
            return 0;
        *(volatile char *)at = 1;
        rm_probe_tid = rm_gettid();
        rm_probe_page = at;
        for (; i < n && rm_host_protect((uint64_t)at, 4096, PROT_NONE) == 0; i++) {
            before = rm_cycles();
            *(volatile char *)at = 1;
            samples[i] = rm_cycles() - rm_probe_out + (rm_probe_in - before);
        }
        rm_probe_page = NULL;
        rm_probe_tid = 0;
        munmap(at, 4096);
        return i;
    }
    static void rm_say_nested(uint64_t addr)
    {
        char text[] = "realmem: fault inside the fault handler, at 0x0000000000000000\\n";
        int i;
        ssize_t n;
        for (i = 0; i < 16; i++)
            text[sizeof text - 3 - i] = "0123456789abcdef"[(addr >> (4 * i)) & 15];
        n = write(2, text, sizeof text - 1);
        (void)n;
    }
    """
    ctypedef struct siginfo_t:
        int si_code
        void* si_addr
    int get_depth "rm_get_depth"() noexcept nogil
    void set_depth "rm_set_depth"(int depth) noexcept nogil
    bint claim "rm_claim"(int* state) noexcept nogil
    int SIGSEGV, SIGBUS
    int save_action "rm_save_action"(int sig, bint retaken) noexcept nogil
    int install_action "rm_install"(int sig, void (*fn)(int, siginfo_t*, void*) noexcept nogil) \
        noexcept nogil
    int uninstall_action "rm_uninstall"(int sig) noexcept nogil
    bint owns_action "rm_owns"(int sig, void (*fn)(int, siginfo_t*, void*) noexcept nogil) \
        noexcept nogil
    void chain "rm_chain"(int sig, siginfo_t* info, void* context, uint64_t ip) noexcept nogil
    const char* probe_page "rm_probe_page"
    int64_t probe_tid "rm_probe_tid"
    void probe_serve "rm_probe_serve"(uint64_t entered) noexcept nogil
    int probe "rm_probe"(uint64_t* samples, int n) noexcept nogil
    void say_nested "rm_say_nested"(uint64_t addr) noexcept nogil


cdef void on_sigsegv(int sig, siginfo_t* info, void* context) noexcept nogil:
    cdef uint64_t entered = cycles()
    cdef int saved_errno = errno
    cdef uint64_t addr = <uint64_t>info.si_addr
    cdef int access = fault_access(context)
    cdef int depth = get_depth()
    cdef bint served = False
    if likely(depth == 0):
        set_depth(1)
        # Only a page fault (MAPERR or ACCERR; of SIGBUS, BUS_ADRERR) has an address; an
        # instruction fetch from a window is a wild jump, which no page could let complete.
        if likely((info.si_code == FAULT_ACCERR
                   or (info.si_code == FAULT_MAPERR and sig == SIGSEGV))
                  and access != FAULT_EXEC):
            served = serve(addr, access, entered)
        set_depth(0)
    elif info.si_code > 0:
        say_nested(addr)
    if unlikely(not served) and not is_probe(addr, entered):
        chain(sig, info, context, fault_ip(context))
    (&errno)[0] = saved_errno


# A fault that probe() made for itself; found late, so that others do not pay for it.
cdef bint is_probe(uint64_t addr, uint64_t entered) noexcept nogil:
    if probe_page == NULL or addr != <uint64_t>probe_page or gettid() != probe_tid:
        return False
    probe_serve(entered)
    return True


# Serve a fault, or let a scratch page stand in and record it.
# Returns: whether the address is a window's.
cdef bint serve(uint64_t host, int access, uint64_t entered) noexcept nogil:
    cdef window* w = NULL
    cdef mm_struct* mm = lock_window(host, &w)
    cdef cpu_area* before
    cdef machine* m
    cdef uint64_t addr
    cdef int rc
    if mm == NULL:
        return False
    addr = w.user_start + (host - w.host_base)
    if unlikely(mm.state != MM_LIVE):
        rc = FAULT_MAPERR
        if scratch_map_locked(mm, addr, False) == 0:
            record(mm, host if is_kernel_mm(mm) else addr, access, rc)
            mutex_unlock(&mm.lock)
            wake_main()
            return True
        mutex_unlock(&mm.lock)
        return False
    m = mm.mmu.m
    before = borrow_area(m)
    count_vm_event(m, HOST_SIGSEGV, 1)
    rc = handle_mm_fault_locked(mm, addr, access, True, entered)
    if unlikely(rc == FAULT_OOM):
        rc = retry(host, &mm, addr, access)
        if mm == NULL:
            return_area(before)
            return rc == FAULT_OK
    if unlikely(rc != FAULT_OK):
        count_vm_event(m, HOST_FORBIDDEN, 1)
        if scratch_map_locked(mm, addr, readable(mm, addr)) == 0:
            # Of the vmalloc area, users know the host's addresses.
            record(mm, host if is_kernel_mm(mm) else addr, access, rc)
        else:
            rc = -1
    return_area(before)
    mutex_unlock(&mm.lock)
    if unlikely(rc > 0):
        wake_main()
    return rc >= 0


# No frame was found.  Once the lock is given up pages can be taken back, and it is tried again;
# the address space may be another's by then, or none's: the access itself is then made again.
cdef int retry(uint64_t host, mm_struct** mm_ref, uint64_t addr, int access) noexcept nogil:
    cdef mm_struct* mm = mm_ref[0]
    cdef uint64_t id = mm.id
    cdef mmu* u = mm.mmu
    cdef window* w = NULL
    cdef int turn = 0
    cdef int rc = FAULT_OOM
    cdef bint found = True
    reclaim_begins(u)
    while rc == FAULT_OOM and found:
        mutex_unlock(&mm.lock)
        found = reclaim_for_fault(u, turn)
        turn += 1
        mm = lock_window(host, &w)
        if mm == NULL or mm.id != id or mm.state != MM_LIVE:
            if mm != NULL:
                mutex_unlock(&mm.lock)
            mm = NULL
            rc = FAULT_OK
        else:
            rc = handle_mm_fault_locked(mm, addr, access, True, 0)
    reclaim_ends(u)
    mm_ref[0] = mm
    return rc


cdef inline mm_struct* lock_window(uint64_t host, window** window_ret) noexcept nogil:
    cdef mm_struct* mm = window_lookup(host)
    while mm != NULL:
        mutex_lock(&mm.lock)
        window_ret[0] = window_covering_locked(mm, host)
        if likely(window_ret[0] != NULL):
            break
        mutex_unlock(&mm.lock)          # it just went, or its block serves another now
        mm = window_lookup(host)
    return mm


cdef inline bint readable(mm_struct* mm, uint64_t addr) noexcept nogil:
    cdef vma_slot* vma = vma_find(&mm.vmas, addr)
    if is_kernel_mm(mm):
        return True
    return vma != NULL and vma.start <= addr and vma.vma.vm_flags & VM_ACCESS != 0


cdef void wake_main() noexcept nogil:
    if handler.notify != NULL:
        handler.notify()


# Preconditions: mm.lock held.
cdef void record(mm_struct* mm, uint64_t addr, int access, int code) noexcept nogil:
    cdef int i
    cdef fault_record* r
    for i in range(NR_FAULT_RECORDS):
        r = &handler.records[i]
        if not claim(&r.state):
            continue
        r.code = code
        r.access = access
        r.pid = mm.pid
        r.address = addr
        r.mm = mm
        r.mm_id = mm.id
        r.tid = gettid()
        r.ident = thread_ident()
        r.seq = <uint64_t>atomic64_add_return(<int64_t*>&handler.seq, 1, SEQ_CST)
        store_int(&r.state, RECORD_READY)
        atomic_add_return(<int32_t*>&handler.nr_pending, 1, SEQ_CST)
        return
    atomic64_add_return(&handler.nr_lost, 1, SEQ_CST)


# ---- install and uninstall --------------------------------------------------

cdef int handler_save() noexcept nogil:
    return save_action(SIGSEGV, False)


cdef int handler_install() noexcept nogil:
    cdef int rc
    spare_take()
    rc = install_action(SIGSEGV, on_sigsegv)
    if rc == 0:
        handler.installed = 1
    return rc


cdef int handler_install_bus() noexcept nogil:
    cdef int rc = save_action(SIGBUS, False)
    if rc == 0:
        rc = install_action(SIGBUS, on_sigsegv)
    if rc == 0:
        handler.bus = 1
    return rc


cdef int handler_retake() noexcept nogil:
    cdef int rc = 0
    if not owns_action(SIGSEGV, on_sigsegv):
        rc = save_action(SIGSEGV, True)
        if rc == 0:
            rc = install_action(SIGSEGV, on_sigsegv)
    if rc == 0 and handler.bus and not owns_action(SIGBUS, on_sigsegv):
        rc = save_action(SIGBUS, True)
        if rc == 0:
            rc = install_action(SIGBUS, on_sigsegv)
    return rc


cdef int handler_uninstall() noexcept nogil:
    cdef int rc = uninstall_action(SIGSEGV)
    if rc == 0:
        handler.installed = 0
    if rc == 0 and handler.bus:
        rc = uninstall_action(SIGBUS)
        handler.bus = 0
    return rc


cdef bint handler_owns() noexcept nogil:
    return owns_action(SIGSEGV, on_sigsegv) and (
        not handler.bus or owns_action(SIGBUS, on_sigsegv))


cdef int handler_probe(uint64_t* samples, int n) noexcept nogil:
    return probe(samples, n)
