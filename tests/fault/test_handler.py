"""Who gets which SIGSEGV: ours, the one before us, the one after us; os.fork()."""

from __future__ import annotations

import signal

import pytest

WILD = """
    with one_process("16M") as (machine, p):
        a = p.mmap(None, PAGE, RW, ANON)
        x = array(p, a, PAGE)
        x[0] = 1
        print("served", flush=True)
        ctypes.memset(0x10, 0, 1)
        print("survived", flush=True)
"""


@pytest.mark.crash
@pytest.mark.parametrize("how", ["enabled before", "-X faulthandler", "enabled after", "never"])
def test_wild_pointer_dies_with_a_traceback(child, how) -> None:
    options = ("-X", "faulthandler") if how == "-X faulthandler" else ()
    code = WILD
    if how == "enabled before":
        code = "\n    faulthandler.enable()" + code
    if how == "enabled after":      # realmem takes SIGSEGV back, says so, and both work
        code = code.replace(
            "x = array",
            "faulthandler.enable()\n"
            "        warnings.simplefilter('always')\n"
            "        x = array",
        )
    done = child(code, returncode=-signal.SIGSEGV, options=options)
    assert done.stdout == "served\n"
    assert ("Fatal Python error: Segmentation fault" in done.stderr) == (how != "never")
    assert ('File "<string>", line' in done.stderr) == (how != "never")
    assert ("RuntimeWarning: SIGSEGV was taken" in done.stderr) == (how == "enabled after")


def test_the_line_that_called_is_warned_of(child) -> None:
    """However deep below the public call it was seen that SIGSEGV had gone."""
    child(
        """
    with one_process("16M") as (machine, p):
        a = p.mmap(None, PAGE, RW, ANON)
        array(p, a, PAGE)[0] = 1
        uses = [
            lambda: p.view(a, PAGE),
            lambda: p.host_address(a),
            lambda: p.fork(),
            lambda: p.pin(a, PAGE).__enter__(),
            lambda: p.guard().__enter__(),
            lambda: machine.fault_costs(),
            lambda: print(machine.fault_costs()),
        ]
        for use in uses:
            signal.signal(signal.SIGSEGV, signal.SIG_DFL)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                use()
            where = [(w.category, w.filename, w.lineno) for w in caught]
            assert where == [(RuntimeWarning, "<string>", use.__code__.co_firstlineno)], where
    """,
    )


@pytest.mark.crash
def test_stolen_and_not_taken_back_dies(child) -> None:
    """Between the theft and the next realmem call a raw fault goes to the thief."""
    done = child(
        """
    with one_process("16M") as (machine, p):
        x = array(p, p.mmap(None, PAGE, RW, ANON), PAGE)
        faulthandler.enable()
        x[0] = 1
    """,
        returncode=-signal.SIGSEGV,
    )
    assert "Fatal Python error: Segmentation fault" in done.stderr


@pytest.mark.crash
@pytest.mark.parametrize("faulthandler", ["before", "after", "never"])
def test_a_sent_signal_still_kills(child, faulthandler) -> None:
    child(
        f"""
    if {faulthandler!r} == "before":
        faulthandler.enable()
    with one_process("16M") as (machine, p):
        a = p.mmap(None, PAGE, RW, ANON)
        if {faulthandler!r} == "after":
            faulthandler.enable()
            warnings.simplefilter("ignore")
        p.view(a, 1)
        os.kill(os.getpid(), signal.SIGSEGV)
    """,
        returncode=-signal.SIGSEGV,
    )


@pytest.mark.crash
def test_a_jump_into_a_window_dies(child) -> None:
    child(
        """
    with one_process("16M") as (machine, p):
        a = p.mmap(None, PAGE, RW | PROT_EXEC, ANON)
        x = array(p, a, PAGE, np.uint8)
        x[:] = 0xC3
        ctypes.CFUNCTYPE(None)(p.host_address(a))()
    """,
        returncode=-signal.SIGSEGV,
    )


@pytest.mark.crash
def test_somebody_elses_handler_gets_the_context(child) -> None:
    """A C handler installed before ours serves its own faults, beside ours."""
    child("""
    from realmem._bench.fault_loops import ForeignHandler
    foreign = ForeignHandler()             # maps a page where its own region faults
    with one_process("16M") as (machine, p):
        n = 64 * PAGE
        x = array(p, p.mmap(None, n, RW, ANON), n)
        for i in range(64):
            x[i * 512] = i
            foreign.store(i * PAGE, i)
        assert [int(x[i * 512]) for i in range(64)] == list(range(64))
        assert [foreign.load(i * PAGE) for i in range(64)] == list(range(64))
        assert foreign.served == 64
        del x
    """)


def test_errno_and_other_signals_survive_a_fault(child) -> None:
    child("""
    import ctypes.util, time
    hits = []
    signal.signal(signal.SIGALRM, lambda *a: hits.append(1))
    with one_process("64M") as (machine, p):
        n = 4000 * PAGE
        a, x = mapped(p, n)
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
        for turn in range(3):
            x[::512] = turn
            ctypes.set_errno(77)
            x[1::512] = turn
            p.mm.core.flush(a, a + n)
        signal.setitimer(signal.ITIMER_REAL, 0)
        assert hits and (x[::512] == 2).all()
        libc = ctypes.CDLL(None, use_errno=True)
        where = p.host_address(a)
        p.mm.core.flush(a, a + n)
        ctypes.set_errno(42)
        libc.memset(ctypes.c_void_p(where), 1, 1)
        assert ctypes.get_errno() == 42
        machine.check()
        del x
    """)


def test_uninstall_gives_everything_back(child) -> None:
    child("""
    from realmem._core import faults
    before = signal.getsignal(signal.SIGSEGV)
    assert not faults.installed()
    with Machine(nodes=1, memory="16M") as machine:
        assert not faults.installed()       # a machine alone takes nothing
        machine.spawn().exit()
        assert faults.installed()
        faults.uninstall()
        assert not faults.installed() and signal.getsignal(signal.SIGSEGV) == before
        p = machine.spawn()
        x = array(p, p.mmap(None, PAGE, RW, ANON), PAGE)
        x[0] = 1
        del x
    """)


def test_first_spawn_in_a_thread(child) -> None:
    child("""
    with Machine(nodes=1, memory="16M") as machine:
        made = []
        t = threading.Thread(target=lambda: made.append(machine.spawn()))
        t.start(); t.join()
        p = made[0]
        x = array(p, p.mmap(None, PAGE, RW, ANON), PAGE)
        x[0] = 1
        y = array(p, p.mm.high - PAGE, PAGE)
        try:
            y[0] = 1                        # the main thread is interrupted all the same
            for _ in range(1000):
                pass
        except SegmentationFault as error:
            assert error.address == p.mm.high - PAGE
        else:
            raise AssertionError("not reported")
        del x, y
    """)


def test_os_fork_leaves_the_child_nothing(child) -> None:
    child("""
    with one_process("16M") as (machine, p):
        a, x = mapped(p, 8 * PAGE)
        x[:] = 5
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                for call in (p.fork, p.exit, lambda: p.view(a, 1), lambda: p.rss,
                             lambda: p.read(a, 1), lambda: p.munmap(a, PAGE), p.guard,
                             lambda: p.mmap(None, 1, RW, ANON), machine.spawn,
                             lambda: machine.processes, machine.check):
                    raises(ValueError, call)
                # The child may have machines of its own.
                with Machine(nodes=1, memory="16M") as other:
                    q = other.spawn()
                    b = q.mmap(None, PAGE, RW, ANON)
                    assert q.host_address(b)
                    y = array(q, b, PAGE)
                    y[0] = 6
                    assert q.read(b, 1) == b"\\x06"
                    other.check()
                    del y
                code = 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert (x == 5).all()
        x[:] = 6
        machine.check()
        pid = os.fork()
        if pid == 0:
            signal.alarm(20)
            x[0] = 7                        # ours no more: dies, reaches no frame
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGSEGV
        assert (x == 6).all()
        machine.check()
        del x
    """)


def test_a_thousand_processes_come_and_go(child) -> None:
    child("""
    def maps():
        with open("/proc/self/maps") as f:
            return sum(1 for _ in f)
    with Machine(nodes=1, memory="64M") as machine:
        def crowd():
            crowd = [machine.spawn(f"p{i}") for i in range(1000)]
            for i, p in enumerate(crowd):
                v = p.view(p.mmap(None, PAGE, RW, ANON), PAGE)
                v[0] = i % 251
                v.release()
            at = p.vmas[0].start
            assert all(p.read(at, 1)[0] == i % 251 for i, p in enumerate(crowd))
            machine.check()
            for p in crowd:
                p.exit()
        crowd()
        before, host = free_pages(machine), maps()
        crowd()
        assert free_pages(machine) == before and maps() <= host + 4
        assert machine.hoststat["host_vmas"] == 0
    """)


def test_subprocesses_can_be_started(child) -> None:
    child("""
    import subprocess
    with one_process("16M") as (machine, p):
        x = array(p, p.mmap(None, PAGE, RW, ANON), PAGE)
        x[0] = 1
        assert subprocess.run([sys.executable, "-c", "print(3)"], capture_output=True,
                              close_fds=False).stdout == b"3\\n"
        x[0] = 2
        del x
    """)


def test_two_threads_install_it(child) -> None:
    """The action that a wild pointer goes to is the one from before either of them."""
    done = child("""
    import time
    faulthandler.enable()
    set_action = signal.signal
    def slowly(*args):                      # another thread may run at any call of Python's
        before = set_action(*args)
        if threading.current_thread() is threading.main_thread():
            taken.set()
            time.sleep(0.2)
        return before
    signal.signal = slowly
    taken = threading.Event()
    one, other = Machine(nodes=1, memory="8M"), Machine(nodes=1, memory="8M")
    def late():
        taken.wait()
        other.spawn()
    t = threading.Thread(target=late)
    t.start()
    one.spawn()
    t.join()
    ctypes.string_at(8)
    """, returncode=-11, timeout=30)
    assert "Segmentation fault" in done.stderr
