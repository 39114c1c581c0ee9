"""The second backend: where it differs from the first, and hosts that refuse it."""

from __future__ import annotations

import errno
import signal
import sys
from functools import partial
from pathlib import Path

import pytest
from backends import needs_backend
from whole_process import run_child

from realmem import Machine
from realmem._core import probe
from realmem.backends import choose
from realmem.errors import HostError


@pytest.fixture
def child():
    """Run code in a child whose machines use userfaultfd."""
    needs_backend("userfaultfd")
    return partial(run_child, faults="userfaultfd")


def test_scattered_stores_split_no_host_vma(child) -> None:
    child("""
    with one_process("64M") as (machine, p):
        assert machine.faults == "userfaultfd"
        n = 32 << 20
        a = p.mmap(None, n, RW, ANON)
        assert a % (2 << 20) == 0
        x = array(p, a, n)
        before = machine.hoststat
        order = np.random.default_rng(1).permutation(n // PAGE)
        for i in order:
            x[i * 512] = i + 1
        after = machine.hoststat
        assert after["sigsegv"] - before["sigsegv"] == n // PAGE
        # 16 runs, each one VMA; none may follow another in the pool.
        assert after["host_vmas"] - before["host_vmas"] <= 2 * 16
        assert [int(x[i * 512]) for i in order] == [i + 1 for i in order]
        machine.check()
        vmas = p.mm.core.host_vmas
        # To write-protect, and to take pages away, splits none either.
        p.mprotect(a + 5 * PAGE, 3 * PAGE, PROT_READ)
        assert int(x[6 * 512]) == 7
        p.mprotect(a + 5 * PAGE, 3 * PAGE, RW)
        x[6 * 512] = 3
        p.madvise(a + 100 * PAGE, 20 * PAGE, MADV_DONTNEED)
        assert p.mm.core.host_vmas == vmas
        kid = p.fork()
        assert p.mm.core.host_vmas == vmas
        kid.exit()
        assert [int(v) for v in x[512 * 100:512 * 120:512]] == [0] * 20
        machine.check()
        del x
    """)


def test_what_the_host_drops_comes_back(child) -> None:
    """The host may reclaim a page of its tables: the next access finds the same frame."""
    child("""
    libc = ctypes.CDLL(None, use_errno=True)
    with one_process("64M") as (machine, p):
        n = 4 << 20
        a, x = mapped(p, n)
        for i in range(n // PAGE):
            x[i * 512] = i + 1
        frames = [pte(p, a + i * PAGE).decoded["pfn"] for i in range(n // PAGE)]
        at = ctypes.c_void_p(p.host_address(a))
        assert libc.madvise(at, ctypes.c_size_t(n), 4) == 0     # MADV_DONTNEED, on the host
        assert [int(v) for v in x[::512]] == list(range(1, n // PAGE + 1))
        assert libc.madvise(at, ctypes.c_size_t(n), 4) == 0
        x[::512] += 1
        kid = p.fork()
        assert libc.madvise(at, ctypes.c_size_t(n), 4) == 0
        x[:512 * 8:512] = 77
        assert array(kid, a, n)[::512].tolist() == list(range(2, n // PAGE + 2))
        assert x[:512 * 9:512].tolist() == [77] * 8 + [10]
        x[512 * 8] = 5                      # what was read only, for it is shared
        assert array(kid, a, n)[512 * 8] == 10
        kid.exit()
        x[512 * 8] = 10
        assert [pte(p, a + i * PAGE).decoded["pfn"] for i in range(9, n // PAGE)] == frames[9:]
        machine.check()
        del x
    """)


def test_copies_stay_where_a_run_is_mapped_anew(child) -> None:
    child("""
    with one_process("64M") as (machine, p):
        n = 4 << 20
        a, x = mapped(p, n)
        x[::512] = range(1, n // PAGE + 1)
        kid = p.fork()
        y = array(kid, a, n)
        assert (y[512 * 5], y[512 * 600]) == (6, 601)   # mapped there, so not to be donated
        x[512 * 5] = x[512 * 600] = 99      # frames of no run
        assert machine.hoststat["donation"] == 0
        del y
        kid.exit()
        p.mm.core.flush(a, a + n)
        assert (x[512 * 5], x[512 * 600]) == (99, 99)
        x[::512] += 1                       # maps the runs
        expected = list(range(2, n // PAGE + 2))
        expected[5] = expected[600] = 100
        assert x[::512].tolist() == expected
        machine.check()
        # They go as the run's own frames do.
        x[512 * 5] = x[512 * 6] = 7
        p.madvise(a + 4 * PAGE, 3 * PAGE, MADV_DONTNEED)
        assert x[512 * 4:512 * 8:512].tolist() == [0, 0, 0, expected[7]]
        machine.check()
        del x
    """)


def test_what_was_open_stays_open_when_its_run_is_mapped(child) -> None:
    child("""
    with one_process("64M") as (machine, p):
        a, x = mapped(p, 2 << 20)
        x[0] = 1                            # by itself; the next one has the run mapped
        x[512] = 2
        before = machine.hoststat["sigsegv"]
        x[0] += 1
        assert machine.hoststat["sigsegv"] == before
        machine.check()
        del x
    """)


def test_what_lies_between_others_is_protected_by_its_own_means(child) -> None:
    """A run's page between two of other frames must not get under their mprotect."""
    child("""
    signal.alarm(60)                        # unmended, a store faults for ever
    with one_process("64M", debug=1) as (machine, p):
        n = 2 << 20
        a, x = mapped(p, n)
        x[::512] = range(1, 513)
        first = p.fork()
        y = array(first, a, n)
        assert (y[512 * 4], y[512 * 6]) == (5, 7)       # so that these two are copied
        x[512 * 4] = x[512 * 6] = 99        # frames of no run; page 5 is shared yet
        before = machine.hoststat["map_flush"]
        second = p.fork()
        assert machine.hoststat["map_flush"] == before  # the window was not flushed for it
        first.exit()
        second.exit()
        x[512 * 5] = 100
        x[512 * 6] = 101
        assert x[512 * 4:512 * 7:512].tolist() == [99, 100, 101]
        # The other way round: WRITEPROTECT would be refused, and all of the window flushed.
        first, second = p.fork(), p.fork()
        y = array(first, a, n)
        assert y[512 * 20] == 21
        second.exit()
        x[512 * 20] = 102                   # copied
        second = p.fork()
        first.exit()
        x[512 * 19] = x[512 * 21] = 103     # given away; page 20 is shared yet
        before = machine.hoststat["map_flush"]
        third = p.fork()
        assert machine.hoststat["map_flush"] == before
        x[512 * 19:512 * 22:512] += 1
        assert x[512 * 18:512 * 23:512].tolist() == [19, 104, 103, 104, 23]
        assert array(third, a, n)[512 * 18:512 * 23:512].tolist() == [19, 103, 102, 103, 23]
        machine.check()
        del x, y
    """)


def test_a_pinned_page_is_not_taken_away_by_another_fault(child) -> None:
    """What is no run's the host fills itself: a fault there has nothing to mend."""
    child("""
    with one_process("16M") as (machine, p):
        n = 16 * PAGE
        a = p.mmap(None, n, RW, MAP_SHARED | MAP_ANONYMOUS)
        with p.pin(a, n, write=True) as view:
            before = machine.hoststat
            for _ in range(3):
                with p.pin(a, n, write=True):
                    pass
            after = machine.hoststat
            for name in ("map_fill", "map_flush", "mprotect"):
                assert after[name] == before[name], (name, before[name], after[name])
            read, write = os.pipe()
            assert os.writev(write, [view]) == n and os.readv(read, [view]) == n
            del view
    """)


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOMEM])
@pytest.mark.parametrize("call", [7, 6, 0], ids=["CONTINUE", "WRITEPROTECT", "REGISTER"])
def test_a_call_refused_in_mid_run(child, call, number) -> None:
    """By a seccomp filter, or a kernel that lacks a mode: pages are mapped by mmap instead."""
    size = {7: 32, 6: 24, 0: 32}[call]
    child(f"""
    sys.path.insert(0, {str(Path(__file__).parents[1])!r})
    from refuse import refuse_ioctl
    with one_process("64M") as (machine, p):
        n = 4 << 20
        a, x = mapped(p, n)
        words = x[::512]
        words[:300] = range(300)
        refuse_ioctl(3 << 30 | {size} << 16 | 0xAA << 8 | {call}, {number})
        words[300:] = range(300, 1024)
        machine.check()
        kid = p.fork()
        theirs = array(kid, a, n)[::512]
        theirs[::3] = 7
        words[::2] += 1
        assert theirs[::2].tolist() == [7 if i % 3 == 0 else i for i in range(0, 1024, 2)]
        kid.exit()
        p.mprotect(a, n, PROT_READ)
        p.mm.core.flush(a + 5 * PAGE, a + 700 * PAGE)
        assert words.tolist() == [i + (i % 2 == 0) for i in range(1024)]
        p.mprotect(a, n, RW)
        libc = ctypes.CDLL(None)
        at = ctypes.c_void_p(p.host_address(a))
        assert libc.madvise(at, ctypes.c_size_t(n), 4) == 0     # MADV_DONTNEED, on the host
        words += 1
        assert words.tolist() == [i + 1 + (i % 2 == 0) for i in range(1024)]
        machine.check()
        del words, theirs, x
    """)


def test_whole_window_flushed_at_the_host_limit(child) -> None:
    """At the limit of host VMAs a window is flushed, or closed by mprotect; nothing is lost."""
    child("""
    with one_process("64M", host_vmas=400) as (machine, p):
        n = 24 << 20
        a, x = mapped(p, n)
        rng = np.random.default_rng(2)
        for i in rng.permutation(n // PAGE):
            x[i * 512] = i + 1
        kids = [p.fork() for _ in range(3)]
        for kid in kids:
            y = array(kid, a, n)
            for i in rng.permutation(n // PAGE)[:2000]:
                y[i * 512] += 1
            del y
        for i in rng.permutation(n // PAGE)[:2000]:
            x[i * 512] = i + 1
        assert x[::512].tolist() == list(range(1, n // PAGE + 1))
        machine.check()
        assert machine.hoststat["host_vmas"] <= 400 + 64, machine.hoststat
        del x
    """)


@pytest.mark.crash
@pytest.mark.parametrize("tracebacks", [True, False])
def test_a_bus_error_elsewhere_dies_as_ever(child, tracebacks) -> None:
    done = child(f"""
    import mmap, tempfile
    if {tracebacks}:
        faulthandler.enable()
    with one_process("16M") as (machine, p), tempfile.TemporaryFile() as f:
        a = p.mmap(None, PAGE, RW, ANON)
        array(p, a, PAGE)[0] = 1
        f.truncate(PAGE)
        m = mmap.mmap(f.fileno(), PAGE)
        f.truncate(0)
        print("served", flush=True)
        m[0]
        print("survived")
    """, returncode=-signal.SIGBUS)
    assert done.stdout == "served\n"
    assert ("Fatal Python error: Bus error" in done.stderr) == tracebacks


def test_taken_back_when_stolen(child) -> None:
    """Who takes SIGBUS is warned of at the next call, and passed what is not realmem's."""
    done = child("""
    with one_process("64M") as (machine, p):
        n = 4 << 20
        a, x = mapped(p, n)
        for i in range(300):
            x[i * 512] = i
        signal.signal(signal.SIGBUS, signal.SIG_DFL)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            p.view(a, PAGE)
        assert len(caught) == 1 and "SIGBUS" in str(caught[0].message), caught
        for i in range(300, 1024):
            x[i * 512] = i
        assert x[::512].tolist() == list(range(1024))
        machine.check()
        del x
    """)
    assert done.stderr == ""


def test_forbidden_accesses_are_reported(child) -> None:
    child("""
    with one_process("64M") as (machine, p):
        n = 4 << 20
        a, x = mapped(p, n)
        x[::512] = 1
        p.mprotect(a, n, PROT_READ)
        error = raises(SegmentationFault, x.__setitem__, 512 * 700, 2)
        assert error.address == a + 700 * PAGE and error.code == 2, error
        p.mprotect(a, n, PROT_NONE)
        error = raises(SegmentationFault, lambda: int(x[512 * 30]))
        assert error.address == a + 30 * PAGE and error.code == 2, error
        p.mprotect(a, n, RW)
        assert x[::512].tolist() == [1] * 1024
        machine.check()
        del x
    """)


def test_children_of_the_host_do_not_keep_it(child) -> None:
    child("""
    def held():
        links = (os.readlink(f"/proc/self/fd/{fd}") for fd in sorted(os.listdir("/proc/self/fd"))
                 if os.path.lexists(f"/proc/self/fd/{fd}"))
        return [link for link in links if "userfaultfd" in link]
    with one_process("64M") as (machine, p):
        a, x = mapped(p, 4 << 20)
        x[::1024] = 5
        assert len(held()) == 1
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pid = os.fork()
        if pid == 0:
            os._exit(len(held()))
        assert os.waitpid(pid, 0)[1] == 0
        x[::512] += 1
        assert x[:4096:512].tolist() == [6, 1] * 4
        machine.check()
        del x
    assert held() == []
    """)


def test_refused_by_seccomp(refusing) -> None:
    done = refusing([sys.executable, "-c", """
import realmem
try:
    realmem.Machine(1, "4M", faults="userfaultfd")
except realmem.HostError as error:
    print(error.errno, "sigsegv" in str(error))
with realmem.Machine(1, "16M", faults="auto") as machine:
    p = machine.spawn()
    a = p.mmap(None, 4096, 3, 0x22)
    p.view(a, 8)[:] = b"12345678"
    print(machine.faults, p.read(a, 8))
"""], deny="userfaultfd")
    assert done.stderr == ""
    assert done.stdout == f"{errno.EPERM} True\nsigsegv b'12345678'\n"


def test_no_descriptor_is_left_for_it(child) -> None:
    """Whether that shows when the machine is made, or with its first process."""
    child("""
    import errno, resource
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
    with one_process("8M"):
        pass                                # all is imported
    machine = Machine(1, "8M")
    held = []
    try:
        while True:
            held.append(os.open("/dev/null", os.O_RDONLY))
    except OSError:
        pass
    for error in (raises(HostError, machine.spawn), raises(HostError, Machine, 1, "8M")):
        assert error.errno == errno.EMFILE and str(error).endswith("raise ulimit -n"), error
    for fd in held:
        os.close(fd)
    p = machine.spawn()
    a = p.mmap(None, 2 << 20, RW, ANON)
    array(p, a, 2 << 20)[::512] = 1
    machine.check()
    machine.close()
    """)


@pytest.mark.parametrize("lacking", ["UFFD_FEATURE_SIGBUS", "_MINOR_SHMEM", "_WP_HUGETLBFS_SHMEM"])
def test_an_older_kernel_lacks_a_part(monkeypatch, lacking) -> None:
    bit = {"UFFD_FEATURE_SIGBUS": 7, "_MINOR_SHMEM": 10, "_WP_HUGETLBFS_SHMEM": 12}[lacking]
    monkeypatch.setattr(probe, "userfaultfd", lambda user: (0, 0xFFFF & ~(1 << bit)))
    with pytest.raises(HostError, match="kernel") as caught:
        choose("userfaultfd")
    assert caught.value.errno == errno.ENOSYS
    assert choose("auto") == "sigsegv"


def test_no_such_backend() -> None:
    with pytest.raises(ValueError, match="'sigsegv', 'userfaultfd' or 'auto'"):
        Machine(1, "4M", faults="signals")
    with pytest.raises(TypeError, match="faults"):
        Machine(1, "4M", faults=1)  # type: ignore[arg-type]
