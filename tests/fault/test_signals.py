"""Signals that rain on threads that fault, and libraries that take SIGSEGV for themselves."""

from __future__ import annotations

import signal

import pytest

RAIN = """
    import time
    from realmem._bench.fault_loops import stop_storm, storm
    faulthandler.dump_traceback_later(100, exit=True)
    C = ctypes.CDLL("LIBRARY")
    for name in ("stop_rain", "signals_counted", "steal_and_pass_on", "store_own", "passed"):
        getattr(C, name).restype = ctypes.c_uint64
    C.store_own.argtypes = [ctypes.c_uint64]

    def storms(p, addr, n, words=(0, 1)):
        \"\"\"Begin threads that store; the function that is returned ends them and looks.\"\"\"
        at, results = p.host_address(addr), {}
        stop_storm(False)
        def store(word):
            if rain is not None:
                rain()
            results[word] = storm(at, n, word)
        threads = [threading.Thread(target=store, args=(word,)) for word in words]
        for t in threads: t.start()
        def end():
            stop_storm()
            for t in threads: t.join()
            x = array(p, addr, n * PAGE)
            for word in words:
                lost, rounds = results[word]
                assert lost == 0 and rounds > 0, results
                assert (x[word::512] == rounds).all()
            return results
        return end

    def warns_of_the_theft(p, addr):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            p.host_address(addr)
        assert [w.category for w in caught] == [RuntimeWarning], caught
        assert "was taken from realmem" in str(caught[0].message)
    rain = None
"""


@pytest.fixture
def rain(threads_library) -> str:
    """What the children below begin with."""
    return RAIN.replace("LIBRARY", threads_library)


@pytest.mark.parametrize("kind", ["anonymous", "copies", "shared"])
def test_alarms_and_profiling_timers(child, rain, kind) -> None:
    """SIGALRM and SIGPROF a thousand times a second, to Python's handlers; system calls go on."""
    child(
        rain
        + f"""
    kind = {kind!r}
    hits = dict.fromkeys((signal.SIGALRM, signal.SIGPROF), 0)
    def on_signal(signum, frame):
        hits[signum] += 1
    for signum in hits:
        signal.signal(signum, on_signal)
    with one_process("128M", window="1G") as (machine, p):
        n = 600
        flags = MAP_SHARED | MAP_ANONYMOUS if kind == "shared" else ANON
        a = p.mmap(None, n * PAGE, RW, flags)
        end_storms = storms(p, a, n)
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
        signal.setitimer(signal.ITIMER_PROF, 0.001, 0.001)
        deadline, turns = time.monotonic() + 1.5, 0
        while time.monotonic() < deadline or turns < 4:
            b = p.mmap(None, 40 * PAGE, RW, ANON)
            x = array(p, b, 40 * PAGE)
            x[::512] = np.arange(40) + turns
            if kind == "copies":
                c = p.fork()
                y = array(c, b, 40 * PAGE)
                x[::512] += 1
                assert (y[::512] == np.arange(40) + turns).all()
                c.exit()
                assert p.wait()[0] == c.pid
            else:
                p.mm.core.flush(a, a + n * PAGE)
                x[::512] += 1
            assert (x[::512] == np.arange(40) + turns + 1).all()
            p.mprotect(b, 20 * PAGE, PROT_READ)
            p.munmap(b, 40 * PAGE)
            turns += 1
        for timer in (signal.ITIMER_REAL, signal.ITIMER_PROF):
            signal.setitimer(timer, 0)
        end_storms()
        assert min(hits.values()) > 20, hits
        machine.check()
    """
    )


def test_signals_sent_to_the_threads_that_fault(child, rain) -> None:
    """A C handler interrupts a storing thread every 20 us or so, at any instruction of it."""
    child(
        rain
        + """
    rained = []
    def rain():
        assert C.start_rain(signal.SIGUSR1, ctypes.c_long(20_000)) == 0
    assert C.count_signal(signal.SIGUSR1) == 0
    with one_process("128M", window="1G") as (machine, p):
        a = p.mmap(None, 600 * PAGE, RW, ANON)
        end_storms = storms(p, a, 600, words=(0,))
        deadline, turns = time.monotonic() + 1.5, 0
        while time.monotonic() < deadline or turns < 4:
            c = p.fork()
            p.mm.core.flush(a, a + 100 * PAGE)
            c.touch(a, 300 * PAGE, write=True)
            c.exit()
            p.wait()
            turns += 1
        stop_storm()
        sent = C.stop_rain()
        end_storms()
        assert 100 < C.signals_counted() <= sent, (C.signals_counted(), sent)
        machine.check()
    """
    )


def test_sigsegv_stolen_by_python_while_threads_fault(child, rain) -> None:
    """
    Faults that meet Python's handler wait, in a loop, until a call takes SIGSEGV back.

    That call warns; what was stored before, meanwhile and after is all there.
    """
    child(
        rain
        + """
    with one_process("64M", window="1G") as (machine, p):
        n = 512
        a = p.mmap(None, n * PAGE, RW, ANON)
        end_storms = storms(p, a, n)
        for turn in range(15):
            for signum in (signal.SIGSEGV, signal.SIGBUS):
                signal.signal(signum, lambda *args: None)
            p.mm.core.flush(a, a + n * PAGE)            # now every page faults, and is not served
            time.sleep(0.01)
            warns_of_the_theft(p, a)
        end_storms()
        machine.check()
    """
    )


def test_sigsegv_stolen_by_a_library_that_passes_on(child, rain) -> None:
    """A library that serves its own faults and passes on others: both work, before and after."""
    child(
        rain
        + """
    with one_process("64M", window="1G") as (machine, p):
        n = 512
        a = p.mmap(None, n * PAGE, RW, ANON)
        end_storms = storms(p, a, n)
        assert C.steal_and_pass_on()
        for turn in range(20):
            p.mm.core.flush(a, a + n * PAGE)            # takes nothing back
            assert C.store_own(turn) == turn + 1
            time.sleep(0.005)
        assert C.passed() > 20, C.passed()
        warns_of_the_theft(p, a)
        on = C.passed()
        p.mm.core.flush(a, a + n * PAGE)
        for turn in range(20):                          # now it is realmem that passes on
            assert C.store_own(turn) == turn + 21
        end_storms()
        assert C.passed() <= on + 2, (C.passed(), on)   # two were under way
        machine.check()
    """
    )


@pytest.mark.crash
@pytest.mark.parametrize("thief", ["library", "python"])
def test_a_wild_pointer_dies_whoever_it_is_passed_to(child, rain, thief) -> None:
    """
    A fault that nobody serves ends.

    It would not where each of two handlers takes the other for the one before, nor where
    Python's, which only makes a note, is who it is passed to.
    """
    child(
        rain
        + f"""
    with one_process("64M", window="1G") as (machine, p):
        x = array(p, p.mmap(None, PAGE, RW, ANON), PAGE)
        if {thief!r} == "library":
            assert C.steal_and_pass_on()
            x[0] = 1
        else:
            signal.signal(signal.SIGSEGV, lambda *args: None)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            p.host_address(p.vmas[0].start)
        x[0] = 2
        if {thief!r} == "library":
            assert C.store_own(3) == 1
        signal.alarm(60)
        ctypes.memset(16, 0, 1)
    """,
        returncode=-signal.SIGSEGV,
    )


@pytest.mark.crash
@pytest.mark.parametrize("action", ["SIG_DFL", "SIG_IGN"])
def test_sigsegv_set_to_the_default_kills(child, rain, action) -> None:
    """With SIG_DFL, and with SIG_IGN, which the kernel does not take for faults, it is death."""
    child(
        rain
        + f"""
    with one_process("64M", window="1G") as (machine, p):
        x = array(p, p.mmap(None, PAGE, RW, ANON), PAGE)
        signal.signal(signal.SIGSEGV, signal.{action})
        signal.alarm(60)
        x[0] = 1
    """,
        returncode=-signal.SIGSEGV,
    )
