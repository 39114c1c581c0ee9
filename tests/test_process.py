"""Processes as Python sees them: life, system calls, errors; VMAs against a plain model."""

from __future__ import annotations

import ctypes
import errno
import mmap as host_mmap
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from soak import examples

import realmem
from realmem import process as process_module
from realmem.errors import HostError, SegmentationFault
from realmem.layout import (
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_FIXED_NOREPLACE,
    MAP_NORESERVE,
    MAP_POPULATE,
    MAP_PRIVATE,
    PAGE_SIZE,
    PROT_READ,
    PROT_WRITE,
    SEGV_MAPERR,
    TASK_SIZE,
)
from realmem.machine import Machine

RW = PROT_READ | PROT_WRITE
ANON = MAP_PRIVATE | MAP_ANONYMOUS
PAGES = 24
PAGE_OFFSET = 0xFFFF_8880_0000_0000


@pytest.fixture(scope="module")
def machine():
    with Machine(nodes=1, memory="32M", window="1G") as machine:
        yield machine


# ---- mmap and munmap ----


@pytest.mark.parametrize(
    "what, addr, length, flags, number",
    [
        ("length 0", 0, 0, ANON, errno.EINVAL),
        ("length rounds up to 0", 0, (1 << 64) - 1, ANON, errno.ENOMEM),
        ("length past the address space", 0, 1 << 47, ANON, errno.ENOMEM),
        ("neither private nor shared", 0, 4096, MAP_ANONYMOUS, errno.EINVAL),
        ("fixed, misaligned", 0x7FFF_B000_0001, 4096, ANON | MAP_FIXED, errno.EINVAL),
        ("fixed, past the end", TASK_SIZE, 4096, ANON | MAP_FIXED, errno.ENOMEM),
        ("noreplace, misaligned", 4097, 4096, ANON | MAP_FIXED_NOREPLACE, errno.EINVAL),
    ],
)
def test_mmap_refuses_as_the_host_does(process, what, addr, length, flags, number):
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
    assert libc.mmap(addr, length, RW, flags, -1, 0) == ctypes.c_void_p(-1).value, what
    assert ctypes.get_errno() == number
    with pytest.raises(OSError) as caught:
        process.mmap(addr, length, RW, flags)
    assert caught.value.errno == number
    assert process.vmas == []


@pytest.mark.parametrize(
    "addr, length, number",
    [(1, 4096, errno.EINVAL), (4096, 0, errno.EINVAL), (4096, (1 << 64) - 4096, errno.EINVAL),
     (1 << 47, 4096, errno.EINVAL), (0x10000, 1, None)],
)
def test_munmap_refuses_as_linux_does(process, addr, length, number):
    if number is None:
        assert process.munmap(addr, length) is None
        return
    with pytest.raises(OSError) as caught:
        process.munmap(addr, length)
    assert caught.value.errno == number


def test_what_is_not_there_yet_says_so(process):
    """A device that Linux maps."""
    mem = Path("/dev/mem")
    try:
        mem.open("rb").close()
    except OSError as why:
        pytest.skip(f"{mem} cannot be opened: {why}")
    with pytest.raises(OSError) as caught:
        process.mmap(None, 4096, PROT_READ, MAP_PRIVATE, mem)
    assert caught.value.errno == errno.EOPNOTSUPP


def test_placement(process):
    first = process.mmap(None, 1, RW, ANON)
    second = process.mmap(None, 5 * PAGE_SIZE, RW, ANON)
    assert second == first - 5 * PAGE_SIZE          # directly below, and one VMA (MM-49)
    assert [(v.start, v.end) for v in process.vmas] == [(second, first + PAGE_SIZE)]
    hint = second - 100 * PAGE_SIZE
    assert process.mmap(hint, 1, RW, ANON) == hint
    assert process.mmap(hint, 1, RW, ANON) not in (hint, 0)     # taken: elsewhere (MM-15)
    assert process.mmap(hint - PAGE_SIZE + 1, 1, PROT_READ, ANON) % PAGE_SIZE == 0
    with pytest.raises(FileExistsError):
        process.mmap(hint, PAGE_SIZE, RW, ANON | MAP_FIXED_NOREPLACE)


def test_fixed_over_the_middle(process):
    """MM-16 and MM-17: what is replaced reads zero, what is not stays; like merges with like."""
    a = process.mmap(None, 3 * PAGE_SIZE, RW, ANON)
    process.write(a, b"x" * 3 * PAGE_SIZE)
    assert process.mmap(a + PAGE_SIZE, PAGE_SIZE, RW, ANON | MAP_FIXED) == a + PAGE_SIZE
    assert len(process.vmas) == 1
    assert process.read(a, 3 * PAGE_SIZE) == b"x" * 4096 + bytes(4096) + b"x" * 4096
    process.mmap(a + PAGE_SIZE, PAGE_SIZE, PROT_READ, ANON | MAP_FIXED)
    assert [v.prot for v in process.vmas] == [RW, PROT_READ, RW]
    assert process.rss == 2


def test_munmap_past_everything(process):
    """MU-04, MU-05."""
    process.munmap(0x20000, 1 << 30)
    a = process.mmap(None, 9 * PAGE_SIZE, RW, ANON | MAP_POPULATE)
    assert process.rss == 9
    for i in (2, 5):
        process.munmap(a + i * PAGE_SIZE, PAGE_SIZE)
    assert len(process.vmas) == 3
    process.munmap(a - PAGE_SIZE, 20 * PAGE_SIZE)
    assert process.vmas == [] and process.rss == 0


def test_vma_fields(process):
    a = process.mmap(None, PAGE_SIZE, RW, ANON)
    b = process.mmap(a - PAGE_SIZE, PAGE_SIZE, PROT_READ, ANON | MAP_NORESERVE)
    (low, high) = process.vmas
    assert (low.start, high.start) == (b, a)
    assert high.prot == RW and high.flags == ANON and high.anon and not high.locked
    assert high.vm_flags == {"rd", "wr", "mr", "mw", "me", "ac", "sd"}
    assert low.vm_flags == {"rd", "mr", "mw", "me", "nr", "sd"}
    assert (high.file, high.policy, high.name, high.offset) == (None, None, None, 0)
    assert process.find_vma(a + 5) == high and process.find_vma(b - 1) == low
    assert process.find_vma(a + PAGE_SIZE) is None


# ---- faults through the software MMU: counts ----


def test_fault_counts(machine, process):
    """CT-04, CT-06: no VMA, no fault; a read, then a write of one page are two."""
    before = machine.vmstat["pgfault"]
    with pytest.raises(SegmentationFault):
        process.read(0x1000, 1)
    assert machine.vmstat["pgfault"] == before and process.min_flt == 0
    a = process.mmap(None, 4 * PAGE_SIZE, RW, ANON)
    process.read(a, 4 * PAGE_SIZE)
    assert (process.min_flt, process.rss, process.maj_flt) == (4, 0, 0)
    process.write(a, b"1")
    assert (process.min_flt, process.rss) == (5, 1)
    process.write(a + 1, b"2")
    assert process.min_flt == 5
    assert machine.vmstat["pgfault"] == before + 5


steps = st.lists(
    st.tuples(
        st.sampled_from(["map", "unmap", "write", "read", "fork", "exit", "flush"]),
        st.integers(0, 3),
        st.integers(0, PAGES - 1),
        st.integers(1, 6),
        st.binary(min_size=1, max_size=3),
    ),
    max_size=40,
)


@examples(60)
@given(steps)
def test_processes_against_plain_dicts(machine, plan):
    """Each process is a dict of page contents in the model; machine.check() after each step."""
    zero = bytes(PAGE_SIZE)
    root = machine.spawn()
    low = root.mm.mmap_base - PAGES * PAGE_SIZE
    live = [(root, {})]
    try:
        for call, who, first, n, data in plan:
            process, model = live[who % len(live)]
            at, last = low + first * PAGE_SIZE, min(first + n, PAGES)
            length = (last - first) * PAGE_SIZE
            if call == "map":
                process.mmap(at, length, RW, ANON | MAP_FIXED)
                model.update(dict.fromkeys(range(first, last), zero))
            elif call == "unmap":
                process.munmap(at, length)
                for i in range(first, last):
                    model.pop(i, None)
            elif call == "write":
                whole = (data * (2 * PAGE_SIZE))[: length - 1]
                done = 0
                for i in range(first, last):
                    if i not in model:
                        break
                    part = whole[done : done + PAGE_SIZE]
                    model[i] = part + model[i][len(part) :]
                    done += len(part)
                if done < len(whole):
                    with pytest.raises(SegmentationFault) as caught:
                        process.write(at, whole)
                    assert caught.value.done == done
                else:
                    process.write(at, whole)
            elif call == "fork" and len(live) < 5:
                live.append((process.fork(), dict(model)))
            elif call == "exit" and len(live) > 1:
                live.remove((process, model))
                process.exit()
            elif call == "flush":
                process.mm.core.flush(at, at + length)
            for process, model in live:
                found = {
                    i: process.read(low + i * PAGE_SIZE, PAGE_SIZE)
                    for i in range(PAGES)
                    if any(v.start <= low + i * PAGE_SIZE < v.end for v in process.vmas)
                }
                assert found == model
            machine.check()
    finally:
        for process, _ in live:
            process.exit()


def test_hoststat_counts_host_calls(machine, process):
    before = machine.hoststat
    a = process.mmap(None, 8 * PAGE_SIZE, RW, ANON)
    process.write(a, bytes(8 * PAGE_SIZE))
    assert {k: v for k, v in machine.hoststat.items() if k != "host_vmas"} == {
        k: v for k, v in before.items() if k != "host_vmas"
    }                                               # the software MMU costs the host nothing
    view = process.view(a, 8 * PAGE_SIZE)
    for i in range(0, 8, 2):
        view[i * PAGE_SIZE] = 1
    after = machine.hoststat
    changed = {k: after[k] - before[k] for k in after if after[k] != before[k]}
    assert changed == {"sigsegv": 4, "map_fill": 4, "spurious": 4, "host_vmas": 8}
    view.release()


def test_a_wait_that_the_machines_end_interrupts(monkeypatch):
    """Whoever wakes while another thread closes sees a closed machine, not an ended process."""
    machine = Machine(nodes=1, memory="8M", window="1G")
    parent = machine.spawn()
    parent.fork()
    caught = []

    def wait():
        try:
            parent.wait()
        except Exception as error:
            caught.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    while not parent._table._exited._waiters:
        threading.Event().wait(0.001)
    # Between the end of the processes and the end of the machine, let the other thread run.
    monkeypatch.setattr(process_module, "reap", lambda: thread.join(60))
    machine.close()
    monkeypatch.undo()
    thread.join()
    assert [type(error) for error in caught] == [ValueError], caught
    assert "closed" in str(caught[0])
    for call in (parent.wait, parent.fork, lambda: parent.rss):
        with pytest.raises(ValueError, match="closed"):
            call()


# ---- names, options, errors ----


def test_names_and_nodes(machine):
    p = machine.spawn("shell", node=0, uid=7)
    assert (p.name, p.uid, p.parent, p.children) == ("shell", 7, None, [])
    c = p.fork()
    assert (c.name, c.uid, c.parent) == ("shell", 7, p) and p.fork("x").name == "x"
    assert machine.processes[p.pid] is p and repr(p) == f"<Process {p.pid} 'shell'>"
    c.exit(300)
    assert repr(c).endswith("exited>") and p.wait(c.pid) == (c.pid, (300 & 255) << 8)
    with pytest.raises(ChildProcessError):
        p.wait(c.pid)
    for child in p.children:
        child.exit()
    p.exit()
    with pytest.raises(ValueError, match="node"):
        machine.spawn(node=5)
    with pytest.raises(TypeError):
        machine.spawn(3)


def test_view_range(process):
    a = process.mmap(None, PAGE_SIZE, RW, ANON)
    assert len(process.view(a, 3)) == 3
    for addr, length in ((process.mm.low - 1, 1), (process.mm.high, 1), (a, 1 << 46), (0, 1)):
        with pytest.raises(ValueError, match="window"):
            process.view(addr, length)
    with pytest.raises(ValueError, match="window"):
        process.host_address(0)
    for call in (lambda: process.view(a, -1), lambda: process.read(-1, 1),
                 lambda: process.touch(1 << 64, 1), lambda: process.read(a, -1)):
        with pytest.raises(ValueError, match="within"):
            call()
    for call in (lambda: process.view("a", 1), lambda: process.read(a, 1.5),
                 lambda: process.write(a, "text"), lambda: process.walk(None)):
        with pytest.raises(TypeError):
            call()


def test_the_ends_of_the_address_space(process):
    for addr, n in (((1 << 64) - 4096, 8192), ((1 << 64) - 1, 1), (TASK_SIZE, 1), (0, 1),
                    (TASK_SIZE - 1, 2), (PAGE_OFFSET, 4096)):
        calls = ((process.touch, n, True), (process.read, n), (process.write, bytes(n)))
        for call, *rest in calls:
            with pytest.raises(SegmentationFault) as caught:
                call(addr, *rest)
            error = caught.value
            assert (error.address, error.code, error.done) == (addr, SEGV_MAPERR, 0)


def test_write_takes_any_contiguous_buffer(process):
    numpy = pytest.importorskip("numpy")
    a = process.mmap(None, PAGE_SIZE, RW, ANON)
    process.write(a, numpy.arange(4, dtype="<u8"))
    assert process.read(a, 32) == b"".join(i.to_bytes(8, "little") for i in range(4))
    process.write(a, b"")
    process.write(a, bytearray(b"xyz"))
    assert process.read(a, 3) == b"xyz" and process.read(a, 0) == b""


def test_address_space_limit(python):
    """Under ulimit -v the window is halved until it fits; where 1G does not, HostError."""
    code = """
import resource
from realmem.errors import HostError
from realmem.layout import *
from realmem.machine import Machine
with Machine(nodes=1, memory="16M") as machine:
    machine.spawn().exit()
    used = int(open("/proc/self/statm").read().split()[0]) * 4096
    resource.setrlimit(resource.RLIMIT_AS, (used + (6 << 30), resource.RLIM_INFINITY))
    p = machine.spawn()
    print(machine.hoststat["window"] >> 30)
    a = p.mmap(None, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS)
    p.view(a, 1)[0] = 1
    assert p.read(a, 1) == b"\\1"
    try:
        p.fork()
    except HostError as error:
        print("refused")
    assert p.children == []
    machine.check()
"""
    done = python(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["4", "refused"]


def test_no_frames_for_a_process(python):
    code = """
import realmem as rm
from realmem.machine import Machine
with Machine(nodes=1, memory="4M") as machine:
    free = sum(n.free_pages for n in machine.nodes)
    hog = []
    try:
        while True:
            hog.append(machine.alloc_pages(rm.GFP_KERNEL | rm.GFP.NOWARN, 0))
    except rm.OutOfMemory:
        pass
    for _ in range(3):
        try:
            machine.spawn()
        except rm.OutOfMemory as error:
            print("OOM")
    for page in hog:
        machine.free_pages(page, 0)
    machine.spawn()
    machine.check()
"""
    done = python(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["OOM"] * 3


def test_hugetlb_backing_is_refused():
    try:
        machine = Machine(nodes=1, memory="4M", backing="hugetlb-2M")
    except HostError:
        pytest.skip("the host has no free 2 MiB huge pages")
    with machine, pytest.raises(HostError, match="hugetlb"):
        machine.spawn()


def test_constants_are_the_hosts():
    names = [n for n in dir(host_mmap) if n.startswith(("MAP_", "PROT_", "MADV_"))]
    ours = [n for n in names if hasattr(realmem, n)]
    assert {"MAP_PRIVATE", "MAP_SHARED", "PROT_WRITE", "MADV_DONTNEED"} <= set(ours)
    assert set(names) - set(ours) <= {"MAP_HUGE_16GB", "MADV_SOFT_OFFLINE"}
    for name in ours:
        assert getattr(realmem, name) == getattr(host_mmap, name), name
