/* Threads that Python does not know, and signals that nobody asked for: for test_signals.py and
   test_thread_ends.py.  Every function runs without the GIL (ctypes.CDLL gives it up). */
#define _GNU_SOURCE
#include <alloca.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096

typedef struct {
    volatile uint64_t *at;      /* one word of the first page */
    uint64_t pages, value;
    int how;                    /* it ends */
    pthread_key_t key;          /* END_DESTRUCTOR */
} job;
enum { END_RETURN, END_EXIT, END_DESTRUCTOR };

static void store(const job *j)
{
    for (uint64_t i = 0; i < j->pages; i++)
        j->at[i * PAGE / 8] = j->value + i;
}

/* After the thread's own code, when its thread-local things are taken down. */
static void store_late(void *arg) { store(arg); }

static void *stores(void *arg)
{
    job *j = arg;
    if (j->how == END_DESTRUCTOR)
        pthread_setspecific(j->key, j);
    else
        store(j);
    if (j->how == END_EXIT)
        pthread_exit(NULL);
    return NULL;
}

/* n threads, `abreast` at a time, each with a stack of its own of `stack` bytes (0: as usual) that
   stores number i + 1 to `pages` pages of its own and ends.  Returns 0 or an errno. */
int short_threads(uint64_t at, uint64_t n, uint64_t pages, uint64_t abreast, uint64_t stack,
                  int how)
{
    pthread_t threads[64];
    job jobs[64];
    pthread_attr_t attr;
    pthread_key_t key;
    int rc = pthread_attr_init(&attr);
    if (rc == 0 && stack)
        rc = pthread_attr_setstacksize(&attr, stack);
    if (rc == 0)
        rc = pthread_key_create(&key, store_late);
    if (abreast > 64)
        rc = EINVAL;
    for (uint64_t first = 0; rc == 0 && first < n; first += abreast) {
        uint64_t started = 0;
        for (; rc == 0 && started < abreast && first + started < n; started++) {
            uint64_t i = first + started;
            jobs[started] = (job){(volatile uint64_t *)(at + i * pages * PAGE), pages, i + 1, how,
                                  key};
            rc = pthread_create(&threads[started], &attr, stores, &jobs[started]);
            if (rc)
                break;
        }
        while (started)
            pthread_join(threads[--started], NULL);
    }
    pthread_key_delete(key);
    pthread_attr_destroy(&attr);
    return rc;
}

/* ---- threads that are cancelled wherever they are, and so inside a fault, too */

typedef struct {
    volatile uint64_t *at;
    uint64_t pages;
    volatile uint64_t rounds;
    int started;
} endless;

static void *stores_until_cancelled(void *arg)
{
    endless *e = arg;
    pthread_setcanceltype(PTHREAD_CANCEL_ASYNCHRONOUS, NULL);
    __atomic_store_n(&e->started, 1, __ATOMIC_RELEASE);
    for (;;) {
        for (uint64_t i = 0; i < e->pages; i++)
            e->at[i * PAGE / 8] = e->rounds + 1;
        e->rounds++;
    }
    return NULL;
}

/* One thread stores to each page in turn until it is cancelled, after `us` microseconds.  Returns
   how often it passed all of them, or -errno. */
int64_t cancelled_thread(uint64_t at, uint64_t pages, uint64_t us)
{
    endless e = {(volatile uint64_t *)at, pages, 0, 0};
    pthread_t thread;
    int rc = pthread_create(&thread, NULL, stores_until_cancelled, &e);
    if (rc)
        return -rc;
    while (!__atomic_load_n(&e.started, __ATOMIC_ACQUIRE))
        usleep(10);
    usleep((useconds_t)us);
    pthread_cancel(thread);
    pthread_join(thread, NULL);
    return (int64_t)e.rounds;
}

/* ---- little room on the stack */

static __attribute__((noinline)) int store_with_room(volatile char *floor, uint64_t room,
                                                     volatile uint64_t *at)
{
    char here;
    uint64_t left = (uint64_t)(&here - (char *)floor);
    volatile char *fill;
    if (left < room + 512)
        return ERANGE;
    fill = alloca(left - room - 256);
    fill[0] = 1;
    *at = 7;
    return 0;
}

typedef struct { uint64_t at, room; int own_stack, rc; } cramped;

static void *stores_cramped(void *arg)
{
    cramped *c = arg;
    pthread_attr_t attr;
    void *floor;
    size_t size;
    stack_t alternate = {.ss_size = 64 << 10};
    if (c->own_stack) {
        alternate.ss_sp = mmap(NULL, alternate.ss_size, PROT_READ | PROT_WRITE,
                               MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        sigaltstack(&alternate, NULL);
    }
    pthread_getattr_np(pthread_self(), &attr);
    pthread_attr_getstack(&attr, &floor, &size);
    pthread_attr_destroy(&attr);
    c->rc = store_with_room(floor, c->room, (volatile uint64_t *)c->at);
    if (c->own_stack) {
        munmap(alternate.ss_sp, alternate.ss_size);
        alternate.ss_flags = SS_DISABLE;
        sigaltstack(&alternate, NULL);
    }
    return NULL;
}

/* A store by a thread that has about `room` bytes of its stack left, with an alternate stack for
   signals or without.  Returns 0 or an errno. */
int cramped_store(uint64_t at, uint64_t room, int own_stack)
{
    cramped c = {at, room, own_stack, 0};
    pthread_t thread;
    int rc = pthread_create(&thread, NULL, stores_cramped, &c);
    if (rc)
        return rc;
    pthread_join(thread, NULL);
    return c.rc;
}

/* ---- signals */

typedef struct { pthread_t to; int sig; long ns; volatile int stop; uint64_t sent; } rain;
static rain falling;
static pthread_t cloud;

static void *rains(void *arg)
{
    rain *r = arg;
    struct timespec pause = {0, r->ns};
    while (!__atomic_load_n(&r->stop, __ATOMIC_ACQUIRE)) {
        if (pthread_kill(r->to, r->sig))
            break;
        r->sent++;
        nanosleep(&pause, NULL);
    }
    return NULL;
}

/* Send the calling thread `sig` every `ns` nanoseconds or so, until stop_rain(). */
int start_rain(int sig, long ns)
{
    falling = (rain){pthread_self(), sig, ns, 0, 0};
    return pthread_create(&cloud, NULL, rains, &falling);
}

uint64_t stop_rain(void)
{
    __atomic_store_n(&falling.stop, 1, __ATOMIC_RELEASE);
    pthread_join(cloud, NULL);
    return falling.sent;
}

/* A C handler that counts, on whatever thread it runs: it needs neither Python nor the GIL. */
static volatile uint64_t counted;
static void count(int sig) { (void)sig; __atomic_add_fetch(&counted, 1, __ATOMIC_RELAXED); }

int count_signal(int sig)
{
    struct sigaction sa;
    memset(&sa, 0, sizeof sa);
    sa.sa_handler = count;
    sa.sa_flags = SA_RESTART;
    return sigaction(sig, &sa, NULL);
}

uint64_t signals_counted(void) { return counted; }

/* ---- a library that takes SIGSEGV and SIGBUS for itself */

static struct sigaction actions_before[2];
static char *own_page;
static volatile uint64_t own_served, passed_on;

static void passes_on(int sig, siginfo_t *info, void *context)
{
    struct sigaction before = actions_before[sig == SIGBUS];
    if ((uint64_t)info->si_addr - (uint64_t)own_page < PAGE) {
        mprotect(own_page, PAGE, PROT_READ | PROT_WRITE);
        own_served++;
        return;
    }
    __atomic_add_fetch(&passed_on, 1, __ATOMIC_RELAXED);
    if (before.sa_flags & SA_SIGINFO)
        before.sa_sigaction(sig, info, context);
    else if (before.sa_handler == SIG_DFL)
        signal(sig, SIG_DFL);
    else if (before.sa_handler != SIG_IGN)
        before.sa_handler(sig);
}

/* It serves faults of a page of its own, and passes others to who had the signals before. */
uint64_t steal_and_pass_on(void)
{
    struct sigaction sa;
    own_page = mmap(NULL, PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memset(&sa, 0, sizeof sa);
    sa.sa_sigaction = passes_on;
    sa.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    if (sigaction(SIGSEGV, &sa, &actions_before[0]) || sigaction(SIGBUS, &sa, &actions_before[1]))
        return 0;
    return (uint64_t)own_page;
}

uint64_t store_own(uint64_t value)
{
    mprotect(own_page, PAGE, PROT_NONE);
    *(volatile uint64_t *)own_page = value;
    return own_served;
}

uint64_t passed(void) { return passed_on; }
