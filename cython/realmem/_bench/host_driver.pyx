# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
"""
A process of the host kernel with nothing in its address space but what it is told to map.

`become()` turns the calling process into it, for good: a loop of a page or two is copied to a
fixed low address with data and a stack of its own beside it, everything else is unmapped, libc
and the interpreter included, and the loop obeys the commands that come over a socket: raw system
calls, loads and stores with SIGSEGV and SIGBUS caught, fork, exit.  So the kernel's search for
room, its merges and its limits see an address space as empty as that of a new realmem process,
and forked copies share their pages as Linux shares them.

The loop is position-independent, makes system calls only, knows no static data and never
allocates.  x86-64 only.
"""
from libc.stdint cimport uint64_t

cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>
    #include <sys/mman.h>

    #define RM_LOW 0x100000UL                   /* the code; what follows it are data pages */
    #define RM_CODE_PAGES 4
    #define RM_DATA (RM_LOW + RM_CODE_PAGES * 4096)
    #define RM_DATA_PAGES 8
    #define RM_MAX_RANGES 512

    struct rm_command { uint64_t op, nr, arg[6]; };
    struct rm_reply { int64_t ret; uint64_t sig, code, address, hash; };

    /* One page; the page after it takes commands, the next two hold what comes back. */
    struct rm_driver {
        uint64_t recover;                       /* where a caught fault goes on, or 0 */
        struct rm_reply reply;
        int64_t first_fd, slot, nr_ranges;
        uint64_t brk;
    };
    #define RM ((volatile struct rm_driver *)RM_DATA)
    #define RM_IN (RM_DATA + 4096)
    #define RM_OUT (RM_DATA + 2 * 4096)
    #define RM_STACK_TOP (RM_DATA + RM_DATA_PAGES * 4096)

    #if defined(__x86_64__)
    #if defined(__clang__)
    #define RM_FN static __attribute__((section("rm_host_driver"), noinline, used))
    #else
    #define RM_FN static __attribute__((section("rm_host_driver"), noipa, used, \\
        optimize("O1", "no-stack-protector", "no-jump-tables", \\
                 "no-tree-loop-distribute-patterns")))
    #endif
    extern const char __start_rm_host_driver[] __attribute__((visibility("hidden")));
    extern const char __stop_rm_host_driver[] __attribute__((visibility("hidden")));

    enum { RM_SYSCALL, RM_LOAD, RM_STORE, RM_TOUCH, RM_FORK };
    enum { NR_read = 0, NR_write = 1, NR_munmap = 11, NR_sigaction = 13, NR_sigreturn = 15,
           NR_clone = 56, NR_prctl = 157, NR_exit_group = 231 };

    RM_FN long rm_call(long nr, long a, long b, long c, long d, long e, long f)
    {
        long ret;
        register long r10 __asm__("r10") = d;
        register long r8 __asm__("r8") = e;
        register long r9 __asm__("r9") = f;
        __asm__ volatile("syscall" : "=a"(ret)
                         : "0"(nr), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                         : "rcx", "r11", "memory");
        return ret;
    }

    /* A signal's context as the kernel lays it out: the program counter is the 17th word of the
       registers, which follow flags, link and the stack's three words. */
    RM_FN void rm_caught(int sig, const uint64_t *info, uint64_t *context)
    {
        if (RM->recover == 0)
            rm_call(NR_exit_group, 99, 0, 0, 0, 0, 0);
        RM->reply.sig = sig;
        RM->reply.code = (uint32_t)info[1];
        RM->reply.address = info[2];
        context[5 + 16] = RM->recover;
    }

    __attribute__((naked, used, section("rm_host_driver"))) static void rm_restore(void)
    {
        __asm__ volatile("movl $15, %eax; syscall");
    }

    /* Each makes one access, and says whether it was made. */
    #define RM_ACCESS(name, instruction) \\
        RM_FN int name(uint64_t address, unsigned char *byte) \\
        { \\
            unsigned char held = *byte; \\
            RM->reply.sig = 0; \\
            __asm__ volatile("leaq 1f(%%rip), %%rax; movq %%rax, %[recover]; " \\
                             instruction "; 1:" \\
                             : [recover] "=m"(RM->recover), [held] "+q"(held) \\
                             : [at] "r"(address) : "rax", "memory", "cc"); \\
            RM->recover = 0; \\
            *byte = held; \\
            return RM->reply.sig == 0; \\
        }
    RM_ACCESS(rm_load, "movb (%[at]), %[held]")
    RM_ACCESS(rm_store, "movb %[held], (%[at])")
    RM_ACCESS(rm_store_nothing, "lock orb $0, (%[at])")

    /* n bytes from an address on: loaded and summed up, or stored as seed, seed + 1 ... */
    RM_FN void rm_run(uint64_t address, uint64_t n, uint64_t seed, int write)
    {
        uint64_t i, hash = 0xcbf29ce484222325UL;
        unsigned char byte = 0;
        for (i = 0; i < n; i++) {
            byte = (unsigned char)(seed + i);
            if (write ? !rm_store(address + i, &byte) : !rm_load(address + i, &byte))
                break;
            hash = (hash ^ byte) * 0x100000001b3UL;
        }
        RM->reply.ret = i;
        RM->reply.hash = hash;
    }

    RM_FN void rm_touch(uint64_t address, uint64_t n, int write)
    {
        uint64_t i;
        unsigned char byte = 0;
        for (i = 0; i < n; i++, address = (address | 4095) + 1)
            if (write ? !rm_store_nothing(address, &byte) : !rm_load(address, &byte))
                break;
        RM->reply.ret = i;
    }

    RM_FN void rm_obey(const volatile struct rm_command *c)
    {
        RM->reply.sig = RM->reply.code = RM->reply.address = RM->reply.hash = 0;
        if (c->op == RM_SYSCALL) {
            RM->reply.ret = rm_call(c->nr, c->arg[0], c->arg[1], c->arg[2], c->arg[3], c->arg[4],
                                    c->arg[5]);
        } else if (c->op == RM_LOAD) {
            rm_run(c->arg[0], c->arg[1], 0, 0);
        } else if (c->op == RM_STORE) {
            rm_run(c->arg[0], c->arg[1], c->arg[2], 1);
        } else if (c->op == RM_TOUCH) {
            rm_touch(c->arg[0], c->arg[1], c->arg[2] != 0);
        } else if (c->op == RM_FORK) {
            RM->reply.ret = rm_call(NR_clone, 17, 0, 0, 0, 0, 0);
            if (RM->reply.ret == 0)
                RM->slot = c->arg[0];
        } else {
            RM->reply.ret = -38;
        }
    }

    RM_FN void rm_catch(int sig)
    {
        /* struct kernel_sigaction: handler, SA_SIGINFO | SA_RESTORER | SA_NODEFER, restorer and
           mask */
        volatile uint64_t action[4];
        action[0] = (uint64_t)&rm_caught;
        action[1] = 0x44000004UL;
        action[2] = (uint64_t)&rm_restore;
        action[3] = 0;
        rm_call(NR_sigaction, sig, (long)action, 0, 8, 0, 0);
    }

    /* The break where it is wanted, its limit counting our data pages as RLIMIT_DATA counts them
       elsewhere: include/uapi/linux/prctl.h:struct prctl_mm_map. */
    RM_FN long rm_set_brk(void)
    {
        volatile uint64_t map[13];
        int i;
        for (i = 0; i < 13; i++)
            map[i] = RM_DATA;
        map[0] = RM_LOW;                                    /* code */
        map[1] = RM_DATA;
        map[3] = RM_DATA + RM_DATA_PAGES * 4096;            /* end of the data */
        map[4] = map[5] = RM->brk;
        map[11] = 0;                                        /* no auxv */
        map[12] = 0xffffffff00000000UL;                     /* its size 0, no exe_fd */
        return rm_call(NR_prctl, 35, 14, (long)map, 13 * 8, 0, 0);
    }

    RM_FN void rm_loop(void)
    {
        const volatile uint64_t *range = (const volatile uint64_t *)RM_IN;
        int64_t i, unmapped = 0;
        for (i = 0; i < RM->nr_ranges; i++)
            unmapped += rm_call(NR_munmap, range[2 * i], range[2 * i + 1], 0, 0, 0, 0) == 0;
        rm_catch(11);
        rm_catch(7);
        RM->reply.ret = unmapped;
        RM->reply.code = RM->brk ? rm_set_brk() : 0;
        for (;;) {
            /* Who is told by a fork that it is the child says nothing. */
            long fd = RM->first_fd + RM->slot;
            if (RM->reply.ret != 0 || ((struct rm_command *)RM_IN)->op != RM_FORK)
                rm_call(NR_write, fd, (long)&RM->reply, sizeof(struct rm_reply), 0, 0, 0);
            if (rm_call(NR_read, fd, RM_IN, 4096, 0, 0, 0) < (long)sizeof(struct rm_command))
                rm_call(NR_exit_group, 0, 0, 0, 0, 0, 0);
            rm_obey((struct rm_command *)RM_IN);
        }
    }

    static int rm_become(int first_fd, uint64_t brk, const uint64_t *ranges, int nr_ranges)
    {
        uint64_t size = __stop_rm_host_driver - __start_rm_host_driver;
        uint64_t entry = RM_LOW + ((const char *)&rm_loop - __start_rm_host_driver);
        if (size > RM_CODE_PAGES * 4096 || nr_ranges > RM_MAX_RANGES / 2)
            return -1;
        if (mmap((void *)RM_LOW, (RM_CODE_PAGES + RM_DATA_PAGES) * 4096, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) != (void *)RM_LOW)
            return -2;
        memcpy((void *)RM_LOW, __start_rm_host_driver, size);
        if (mprotect((void *)RM_LOW, RM_CODE_PAGES * 4096, PROT_READ | PROT_EXEC))
            return -3;
        memcpy((void *)RM_IN, ranges, nr_ranges * 16);
        RM->first_fd = first_fd;
        RM->brk = brk;
        RM->nr_ranges = nr_ranges;
        __asm__ volatile("movq %0, %%rsp; xorl %%ebp, %%ebp; pushq $0; jmp *%1"
                         :: "r"(RM_STACK_TOP), "r"(entry) : "memory");
        __builtin_unreachable();
    }
    #else
    static int rm_become(int first_fd, uint64_t brk, const uint64_t *ranges, int nr_ranges)
    { return -38; }
    #endif
    """
    enum: RM_LOW
    enum: RM_CODE_PAGES
    enum: RM_DATA_PAGES
    enum: RM_IN
    enum: RM_OUT
    int rm_become(int first_fd, uint64_t brk, const uint64_t* ranges, int nr_ranges) nogil

LOW = RM_LOW                # first address of what stays
CODE_PAGES = RM_CODE_PAGES
DATA_PAGES = RM_DATA_PAGES
IN = RM_IN                  # a command and what follows it in the message
OUT = RM_OUT                # two pages for what system calls write


def become(int first_fd, uint64_t brk, ranges):
    """
    Turn this process into a driver.

    :param first_fd: one end of a SOCK_SEQPACKET pair; forked copies use those that follow.
    :param brk: where the heap is to begin.
    :param ranges: (start, end) of every mapping there is.
    :raises OSError: it cannot be done here; otherwise it does not return.
    """
    cdef uint64_t plain[512]
    cdef int n = 0
    for start, end in ranges:
        if n == 256:
            raise OSError("too many mappings to begin with")
        plain[2 * n] = start
        plain[2 * n + 1] = end - start
        n += 1
    raise OSError(f"this process cannot become a driver: {rm_become(first_fd, brk, plain, n)}")
