# What the kernel side needs from the compiler: branch hints, atomics, locks,
# the calling CPU, fatal checks.  Everything here is safe in a signal handler.
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t

cdef extern from *:
    """
    #ifndef REALMEM_COMPILER_H
    #define REALMEM_COMPILER_H
    #include <stdint.h>
    #include <string.h>
    #include <stdlib.h>
    #include <sched.h>
    #include <unistd.h>

    #define rm_likely(x)   __builtin_expect(!!(x), 1)
    #define rm_unlikely(x) __builtin_expect(!!(x), 0)
    #define rm_return_address() ((uint64_t)__builtin_return_address(0))
    #define rm_barrier()   __asm__ __volatile__("" ::: "memory")

    #define rm_load(p)            __atomic_load_n((p), __ATOMIC_ACQUIRE)
    #define rm_load_relaxed(p)    __atomic_load_n((p), __ATOMIC_RELAXED)
    #define rm_store(p, v)        __atomic_store_n((p), (v), __ATOMIC_RELEASE)
    #define rm_store_relaxed(p,v) __atomic_store_n((p), (v), __ATOMIC_RELAXED)

    #define rm_ctz(x)  __builtin_ctzll(x)
    #define rm_fls(x)  (63 - __builtin_clzll(x))

    /* Whether a lock may be taken while others are held: asked where a machine wants that
       (lock_order.pyx), before the lock is waited for. */
    typedef struct {
        void (*taking)(const void *lock, uint64_t rank, int tried);
        void (*given)(const void *lock);
    } rm_lock_order;

    typedef struct { int locked; uint64_t rank; const rm_lock_order *order; } rm_spinlock;

    static inline int rm_spin_try(rm_spinlock *l)
    {
        return __atomic_exchange_n(&l->locked, 1, __ATOMIC_ACQUIRE) == 0;
    }
    static __attribute__((noinline, unused)) void rm_spin_lock_slow(rm_spinlock *l)
    {
        unsigned int turns = 0;
        for (;;) {
            while (__atomic_load_n(&l->locked, __ATOMIC_RELAXED)) {
                if (++turns < 64)
                    __builtin_ia32_pause();
                else
                    sched_yield();      /* the holder may be preempted */
            }
            if (rm_spin_try(l))
                return;
        }
    }
    static inline void rm_spin_lock(rm_spinlock *l)
    {
        if (rm_unlikely(l->order != NULL))
            l->order->taking(l, l->rank, 0);
        if (rm_unlikely(!rm_spin_try(l)))
            rm_spin_lock_slow(l);
    }
    static inline int rm_spin_trylock(rm_spinlock *l)
    {
        int got = rm_spin_try(l);
        if (rm_unlikely(l->order != NULL) && got)
            l->order->taking(l, l->rank, 1);
        return got;
    }
    static inline void rm_spin_unlock(rm_spinlock *l)
    {
        if (rm_unlikely(l->order != NULL))
            l->order->given(l);
        __atomic_store_n(&l->locked, 0, __ATOMIC_RELEASE);
    }

    /* gcc's sanitizers take an address relative to the thread pointer for an absolute one. */
    #if defined(__x86_64__) && defined(__SEG_FS) && !defined(__SANITIZE_ADDRESS__) \\
            && !defined(__SANITIZE_THREAD__)
    #define RM_SEG_FS 1
    #endif

    /* The CPU this thread runs on: glibc (2.35 and newer) registers rseq, whose
       cpu_id field is one load away; older ones are asked the slow way. */
    extern const ptrdiff_t __rseq_offset __attribute__((weak));
    extern const unsigned int __rseq_size __attribute__((weak));
    static ptrdiff_t rm_rseq_cpu;           /* of cpu_id, from the thread pointer; 0: none */
    static __attribute__((constructor, unused)) void rm_find_rseq(void)
    {
        if (&__rseq_size && __rseq_size)
            rm_rseq_cpu = __rseq_offset + 4;
    }
    /* The same in one load, or any number at all where there is no rseq. */
    static inline int rm_cpu_hint(void)
    {
    #ifdef RM_SEG_FS
        return *(volatile int __seg_fs *)rm_rseq_cpu;
    #else
        return rm_rseq_cpu ? *(volatile int *)((char *)__builtin_thread_pointer() + rm_rseq_cpu)
                           : -1;
    #endif
    }
    static inline int rm_cpu(void)
    {
    #if defined(__x86_64__) || defined(__aarch64__)
        if (rm_likely(&__rseq_size && __rseq_size)) {
            char *tp = (char *)__builtin_thread_pointer();
            int cpu = *(volatile int *)(tp + __rseq_offset + 4);
            if (rm_likely(cpu >= 0))
                return cpu;
        }
    #endif
        return sched_getcpu();
    }

    /* A broken invariant inside the kernel side: say where and die, since nothing
       can be raised here.  Only write(2): this may run in a signal handler. */
    static __attribute__((noinline, cold, noreturn, unused)) void rm_bug(const char *what)
    {
        static const char head[] = "realmem: kernel BUG: ";
        ssize_t n = write(2, head, sizeof head - 1);
        n = write(2, what, strlen(what));
        n = write(2, "\\n", 1);
        (void)n;
        abort();
    }
    #ifdef REALMEM_DEBUG_VM
    #define rm_vm_bug_on(cond, what) do { if (rm_unlikely(cond)) rm_bug(what); } while (0)
    #else
    #define rm_vm_bug_on(cond, what) do { } while (0)
    #endif
    #endif
    """
    ctypedef struct lock_order "rm_lock_order":
        void (*taking)(const void* lock, uint64_t rank, int tried) noexcept nogil
        void (*given)(const void* lock) noexcept nogil
    ctypedef struct spinlock "rm_spinlock":
        int locked
        uint64_t rank
        const lock_order* order

    bint likely "rm_likely"(bint cond) noexcept nogil
    bint unlikely "rm_unlikely"(bint cond) noexcept nogil
    void barrier "rm_barrier"() noexcept nogil      # compiler only

    # Where the function that stands in returns to: its caller, or who jumped there.
    uint64_t return_address "rm_return_address"() noexcept nogil

    int load_int "rm_load"(int* p) noexcept nogil
    void store_int "rm_store"(int* p, int v) noexcept nogil
    int32_t load32 "rm_load"(int32_t* p) noexcept nogil
    void store32 "rm_store"(int32_t* p, int32_t v) noexcept nogil
    uint64_t load64 "rm_load"(uint64_t* p) noexcept nogil
    void store64 "rm_store"(uint64_t* p, uint64_t v) noexcept nogil
    int64_t peek64 "rm_load_relaxed"(int64_t* p) noexcept nogil
    uint64_t peeku64 "rm_load_relaxed"(uint64_t* p) noexcept nogil
    int peek_int "rm_load_relaxed"(int* p) noexcept nogil
    void poke_int "rm_store_relaxed"(int* p, int v) noexcept nogil
    void poke64 "rm_store_relaxed"(uint64_t* p, uint64_t v) noexcept nogil

    unsigned int ctz "rm_ctz"(uint64_t x) noexcept nogil    # x != 0
    unsigned int fls "rm_fls"(uint64_t x) noexcept nogil    # index of the top bit, x != 0

    void spin_lock "rm_spin_lock"(spinlock* lock) noexcept nogil
    bint spin_trylock "rm_spin_trylock"(spinlock* lock) noexcept nogil
    void spin_unlock "rm_spin_unlock"(spinlock* lock) noexcept nogil

    int cpu_hint "rm_cpu_hint"() noexcept nogil     # compared with one that this_cpu_id gave
    int this_cpu_id "rm_cpu"() noexcept nogil

    void BUG "rm_bug"(const char* what) noexcept nogil
    void VM_BUG_ON "rm_vm_bug_on"(bint cond, const char* what) noexcept nogil

    # Sequentially consistent read-modify-write on shared words.
    int32_t atomic_add_return "__atomic_add_fetch"(
        int32_t* p, int32_t v, int order) noexcept nogil
    int64_t atomic64_add_return "__atomic_add_fetch"(
        int64_t* p, int64_t v, int order) noexcept nogil
    uint64_t atomic64_fetch_or "__atomic_fetch_or"(
        uint64_t* p, uint64_t v, int order) noexcept nogil
    uint64_t atomic64_fetch_and "__atomic_fetch_and"(
        uint64_t* p, uint64_t v, int order) noexcept nogil
    uint64_t atomic64_xchg "__atomic_exchange_n"(uint64_t* p, uint64_t v, int order) noexcept nogil
    int atomic_xchg "__atomic_exchange_n"(int* p, int v, int order) noexcept nogil
    enum: SEQ_CST "__ATOMIC_SEQ_CST"
    enum: RELAXED "__ATOMIC_RELAXED"
    enum: ACQUIRE "__ATOMIC_ACQUIRE"
    enum: RELEASE "__ATOMIC_RELEASE"
