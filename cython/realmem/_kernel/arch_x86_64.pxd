# What the handler must know of x86-64: the fault's kind and place in the saved context, and
# the clock.
# The only file with architecture-dependent lines of the fault path; another architecture
# brings its own in its place.  (The page-table format is x86-64's everywhere, by choice.)
from libc.stdint cimport uint64_t

cdef extern from *:
    """
    #ifndef REALMEM_ARCH_X86_64_H
    #define REALMEM_ARCH_X86_64_H
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <emmintrin.h>
    #include <signal.h>
    #include <stdint.h>
    #include <ucontext.h>
    #if !defined(__x86_64__)
    #error "the fault handler knows x86-64 only: write its arch file for this machine"
    #endif
    /* Bits of the page-fault error code (arch/x86/include/asm/trap_pf.h). */
    #define RM_PF_WRITE 2
    #define RM_PF_INSTR 16
    static inline int rm_fault_access(const void *context)
    {
        long code = ((const ucontext_t *)context)->uc_mcontext.gregs[REG_ERR];
        return code & RM_PF_INSTR ? 2 : code & RM_PF_WRITE ? 1 : 0;
    }
    static inline uint64_t rm_fault_ip(const void *context)
    {
        return (uint64_t)((const ucontext_t *)context)->uc_mcontext.gregs[REG_RIP];
    }
    /* The time-stamp counter: constant and alike on all CPUs of today's hosts. */
    static inline uint64_t rm_cycles(void) { return __builtin_ia32_rdtsc(); }
    /* Zeros past the caches, which nobody will look for there: length is of whole lines. */
    static inline void rm_clear_streaming(uint64_t at, uint64_t length)
    {
        const __m128i zero = _mm_setzero_si128();
        __m128i *p = (__m128i *)at, *end = (__m128i *)(at + length);
        for (; p < end; p += 4) {
            _mm_stream_si128(p, zero);
            _mm_stream_si128(p + 1, zero);
            _mm_stream_si128(p + 2, zero);
            _mm_stream_si128(p + 3, zero);
        }
        _mm_sfence();
    }
    #endif
    """
    # FAULT_READ, FAULT_WRITE or FAULT_EXEC.
    int fault_access "rm_fault_access"(const void* context) noexcept nogil
    # Address of the instruction that faulted.
    uint64_t fault_ip "rm_fault_ip"(const void* context) noexcept nogil
    # A clock that costs some ten nanoseconds to read.
    uint64_t cycles "rm_cycles"() noexcept nogil
    # Zero many whole pages without taking the caches for them.
    void clear_streaming "rm_clear_streaming"(uint64_t at, uint64_t length) noexcept nogil
