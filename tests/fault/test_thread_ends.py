"""Threads that end right after a fault, or inside one, or have hardly any stack for it."""

from __future__ import annotations

import signal

import pytest

ENDS = """
    import time
    faulthandler.dump_traceback_later(100, exit=True)
    C = ctypes.CDLL("LIBRARY")
    u64 = ctypes.c_uint64
    C.short_threads.argtypes = [u64] * 5 + [ctypes.c_int]
    C.cancelled_thread.argtypes, C.cancelled_thread.restype = [u64] * 3, ctypes.c_int64
    C.cramped_store.argtypes = [u64, u64, ctypes.c_int]

    def balance(machine, rounds):
        # What threads give back at their very end may come late.
        def look():
            for cache in machine.kmem_caches.values():
                cache.shrink()
            machine.quicklists.trim()
            return free_pages(machine)
        most = max((free for free, _, _ in rounds), default=0)
        for _ in range(500):
            if look() >= most:
                break
            time.sleep(0.01)
        rounds.append((look(), resident(), maps()))

    def verify(rounds):
        # No frame, no area and no mapping is left behind, round after round.
        (free, kib, n), last = rounds[1], rounds[-1]
        assert last[0] >= free, rounds
        if "san.so" not in os.environ.get("LD_PRELOAD", ""):    # which keeps notes of its own
            assert last[1] < kib + 2000 and last[2] < n + 40, rounds

    def resident():
        with open("/proc/self/status") as f:
            status = f.read().split()
        return int(status[status.index("RssAnon:") + 1])

    def maps():
        with open("/proc/self/maps") as f:
            return sum(1 for _ in f)
"""


@pytest.fixture
def ends(threads_library) -> str:
    """What the children below begin with."""
    return ENDS.replace("LIBRARY", threads_library)


@pytest.mark.parametrize("how", ["return", "pthread_exit", "destructor"])
def test_threads_that_fault_and_end(child, ends, how) -> None:
    """
    Thousands of threads that Python does not know, some abreast, each storing to its own pages.

    They end by returning, by pthread_exit(), or fault in a destructor of thread-local data,
    after everything else of theirs has gone.
    """
    child(
        ends
        + f"""
    how = ["return", "pthread_exit", "destructor"].index({how!r})
    with one_process("64M", window="1G") as (machine, p):
        n, each = 1500, 3
        rounds = []
        for turn in range(3):
            a = p.mmap(None, n * each * PAGE, RW, ANON)
            assert C.short_threads(p.host_address(a), n, each, 8, 64 << 10, how) == 0
            x = array(p, a, n * each * PAGE)
            assert (x[::512].reshape(n, each)
                    == np.arange(1, n + 1)[:, None] + np.arange(each)).all()
            del x
            p.munmap(a, n * each * PAGE)
            machine.check()
            balance(machine, rounds)
        verify(rounds)
    """
    )


def test_pythons_threads_that_fault_and_end(child, ends) -> None:
    """Each gets an area of its own by its first call, and gives it back with all it holds."""
    child(
        ends
        + """
    with one_process("64M", window="1G") as (machine, p):
        errors = []
        def work(i):
            try:
                b = p.mmap(None, 8 * PAGE, RW, ANON)        # makes the thread's area
                x = array(p, b, 8 * PAGE)
                x[::512] = i
                assert (x[::512] == i).all()
                del x
                if i % 3:
                    p.munmap(b, 8 * PAGE)
                else:
                    left.append(b)
                x = array(p, shared, PAGE * 500)
                x[i * 512] = i + 1                          # the last thing it does is a fault
            except BaseException as error:
                errors.append(error)
                raise
        rounds = []
        for turn in range(4):
            left = []
            shared = p.mmap(None, 500 * PAGE, RW, ANON)
            for first in range(0, 500, 5):
                threads = [threading.Thread(target=work, args=(i,))
                           for i in range(first, first + 5)]
                for t in threads: t.start()
                for t in threads: t.join()
            assert not errors, errors
            assert (array(p, shared, 500 * PAGE)[::512] == np.arange(1, 501)).all()
            for b in left:
                p.munmap(b, 8 * PAGE)
            p.munmap(shared, 500 * PAGE)
            machine.check()
            balance(machine, rounds)
        verify(rounds)
    """
    )


def test_threads_that_are_cancelled_inside_faults(child, ends) -> None:
    """A thread may be cancelled at any instruction; a fault is first served to its end."""
    child(
        ends
        + """
    with one_process("64M", window="1G") as (machine, p):
        n = 100
        a = p.mmap(None, n * PAGE, RW, ANON)
        at = p.host_address(a)
        x = array(p, a, n * PAGE)
        rng = np.random.default_rng(1)
        for turn in range(300):
            p.madvise(a, n * PAGE, MADV_DONTNEED)
            rounds = C.cancelled_thread(at, n, int(rng.integers(0, 1500)))
            assert rounds >= 0, rounds
            words = x[::512].astype(np.int64)               # in order, one pass at a time
            assert words.max() - words.min() <= 1 and (np.diff(words) <= 0).all(), words
            assert words[0] in (rounds, rounds + 1), (words, rounds)
        p.munmap(a, n * PAGE)
        machine.check()
    """
    )


def test_the_smallest_stacks(child, ends) -> None:
    """Python's 32 KiB and the host's PTHREAD_STACK_MIN are enough for a fault of any kind."""
    child(
        ends
        + """
    smallest = max(16384, os.sysconf("SC_THREAD_STACK_MIN")
                   if "SC_THREAD_STACK_MIN" in os.sysconf_names else 16384)
    for folios in (None, "64kB", "2048kB"):
        with one_process("64M", window="1G") as (machine, p):
            if folios:
                machine.sysfs[
                    f"/sys/kernel/mm/transparent_hugepage/hugepages-{folios}/enabled"] = "always"
            n = 3 * 512
            a = p.mmap(None, n * PAGE, RW, ANON)
            assert C.short_threads(p.host_address(a), 3, 512, 1, smallest, 0) == 0
            c = p.fork()
            assert C.short_threads(c.host_address(a), 3, 512, 1, smallest, 1) == 0
            assert C.short_threads(p.host_address(a), 3, 512, 1, smallest, 2) == 0
            x, y = array(p, a, n * PAGE), array(c, a, n * PAGE)
            assert (x[::512] == y[::512]).all() and x[512 * 512] == 2
            def work():
                x[1::512] = 5
                y[1::512] = 6
            before = threading.stack_size(32 << 10)
            t = threading.Thread(target=work)
            t.start()
            t.join()
            threading.stack_size(before)
            assert (x[1::512] == 5).all() and (y[1::512] == 6).all()
            machine.check()
            del x, y
    """
    )


@pytest.mark.parametrize("room", [256, 1024, 8192])
def test_a_full_stack_with_another_for_signals(child, ends, room) -> None:
    """With sigaltstack() a fault needs nothing of the thread's own stack."""
    child(
        ends
        + f"""
    with one_process("16M", window="1G") as (machine, p):
        a = p.mmap(None, PAGE, RW, ANON)
        assert C.cramped_store(p.host_address(a), {room}, 1) == 0
        assert p.read(a, 1) == b"\\7"
        machine.check()
    """
    )


@pytest.mark.crash
def test_a_full_stack_is_the_end(child, ends) -> None:
    """Without one, the host kernel finds no room to tell of the fault: death, and no hang."""
    child(
        ends
        + """
    with one_process("16M", window="1G") as (machine, p):
        a = p.mmap(None, PAGE, RW, ANON)
        signal.alarm(60)
        C.cramped_store(p.host_address(a), 256, 0)
    """,
        returncode=-signal.SIGSEGV,
    )
