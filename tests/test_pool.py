"""The pool of real memory, with the running kernel as the witness."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import resource
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

import realmem as rm
from realmem import preflight
from realmem._core import pool as core
from realmem.host import limits
from realmem.pool import Placement, Pool, PoolNode

MIB = 1 << 20
HOST_NODE = limits.mems_allowed()[0] if limits.mems_allowed() else 0


def node(size: int, start: int = 0, host_node: int | None = HOST_NODE, at: int = 0) -> PoolNode:
    """A node whose page array lies `at` bytes into it."""
    memmap = -(-size // 64 // 4096) * 4096
    return PoolNode(size, start, host_node, start + at, memmap)


NODES = [node(8 * MIB), node(4 * MIB, 24 * MIB, at=2 * MIB), node(0, 0), node(16 * MIB, 64 * MIB)]

# What children of these tests start with.
PRELUDE = f"""
import errno, os, resource, sys
import realmem as rm
from realmem import preflight
from realmem.pool import Pool, PoolNode
def node(size, start=0, host_node={HOST_NODE}):
    return PoolNode(size, start, host_node, start, -(-size // 64 // 4096) * 4096)
def refused(*args, **kwargs):
    try:
        Pool(*args, **kwargs)
    except rm.HostError as error:
        return error
    raise SystemExit("not refused")
"""


def code(body: str) -> str:
    return PRELUDE + textwrap.dedent(body)


def mine() -> tuple[list[str], set[str]]:
    """What a leak would show in: mappings of pools, and open descriptors."""
    maps = Path("/proc/self/maps").read_text().splitlines()
    fds = {str(fd.readlink()) for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink()}
    return [line for line in maps if "memfd:realmem" in line], fds


def children() -> list[str]:
    tasks = Path("/proc/self/task").glob("*/children")
    return [pid for task in tasks for pid in task.read_text().split()]


@pytest.fixture
def nothing_leaks() -> Iterator[None]:
    before = (mine(), children())
    yield
    assert (mine(), children()) == before


@pytest.fixture
def pool(nothing_leaks: None) -> Iterator[Pool]:
    pool = Pool(NODES)
    yield pool
    pool.close()


def word(address: int) -> ctypes.c_uint64:
    return ctypes.c_uint64.from_address(address)


def test_frames_and_their_struct_pages_are_where_arithmetic_says(pool: Pool) -> None:
    assert pool.fds[2] == -1
    for i, each in enumerate(NODES):
        if not each.bytes:
            continue
        for phys in (each.start_phys, each.start_phys + each.bytes - 4096):
            page = word(pool.vmemmap + phys // 4096 * 64)
            alias = word(pool.direct_map + each.memmap_phys + (phys - each.start_phys) // 64)
            assert page.value == alias.value == 0
            page.value = 0x1234 + i
            assert alias.value == 0x1234 + i
        os.pwrite(pool.fds[i], b"frame", each.bytes - 5)
        end = pool.direct_map + each.start_phys + each.bytes
        assert ctypes.string_at(end - 5, 5) == b"frame"


def test_no_access_faults_after_construction(pool: Pool) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for each in NODES:
        for offset in range(0, each.bytes, 4096):
            word(pool.direct_map + each.start_phys + offset).value = 1
        for offset in range(0, each.memmap_bytes, 4096):
            word(pool.vmemmap + each.start_phys // 64 + offset).value = 1
    after = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    assert after - before < 100  # the loop's own objects; the pool has 7,280 pages


@pytest.mark.usefixtures("numa_calls")
def test_memory_is_where_it_was_asked_for(pool: Pool) -> None:
    assert pool.placement[2] == Placement(HOST_NODE, False, True, 0, None)
    for each, placement in zip(NODES, pool.placement, strict=True):
        if each.bytes:
            assert placement == Placement(HOST_NODE, True, True, 0, None)
    lines = [line for line in Path("/proc/self/numa_maps").read_text().splitlines()
             if "memfd:realmem" in line]
    assert len(lines) == 6
    for line in lines:
        assert f"bind:{HOST_NODE}" in line
        counts = [word for word in line.split() if word[0] == "N" and word[1].isdigit()]
        assert [count.split("=")[0] for count in counts] == [f"N{HOST_NODE}"]


def test_unasked_node_is_not_called_bound(nothing_leaks: None) -> None:
    pool = Pool([node(2 * MIB, host_node=None)])
    assert pool.placement == [Placement(None, False, False, 0, "no host node asked for")]
    pool.close()


@pytest.mark.usefixtures("numa_calls")
def test_wrong_node_is_counted(pool: Pool) -> None:
    """The check can fail: against a node that does not have the pages, all are misplaced."""
    where = pool.direct_map
    assert core.misplaced(where, 8 * MIB, 4096, HOST_NODE) == (0, 0)
    assert core.misplaced(where, 8 * MIB, 4096, HOST_NODE + 1) == (2048, 0)


def test_mappings_are_kept_from_forks_and_core_dumps(pool: Pool) -> None:
    """VmFlags dc and dd, also of the reserved gaps between nodes."""
    seen = 0
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split()[0]
        if first[-1] != ":":
            start = int(first.split("-")[0], 16)
            inside = pool.direct_map <= start < pool.direct_map + 80 * MIB
            inside = inside or "memfd:realmem" in line
        elif first == "VmFlags:" and inside:
            assert {"dc", "dd"} <= set(line.split())
            seen += 1
    assert seen == 3 * 2 + 2


def test_close_is_idempotent_and_gives_everything_back(nothing_leaks: None) -> None:
    pool = Pool(NODES)
    where = pool.direct_map
    pool.close()
    pool.close()
    assert pool.fds == [-1] * 4
    assert f"{where:x}-" not in Path("/proc/self/maps").read_text()


def test_revoke_gives_the_memory_back_but_keeps_the_addresses(nothing_leaks: None) -> None:
    pool = Pool(NODES)
    where = pool.direct_map
    pool.revoke()
    assert pool.fds == [-1] * 4
    maps = Path("/proc/self/maps").read_text()
    assert "memfd:realmem" not in maps
    line = next(line for line in maps.splitlines() if line.startswith(f"{where:x}-"))
    assert line.split()[1] == "---p"
    pool.close()
    assert f"{where:x}-" not in Path("/proc/self/maps").read_text()


def test_several_pools_live_side_by_side(nothing_leaks: None) -> None:
    pools = [Pool([node(2 * MIB)]) for _ in range(3)]
    for i, pool in enumerate(pools):
        word(pool.direct_map).value = i
    assert [word(pool.direct_map).value for pool in pools] == [0, 1, 2]
    for pool in pools:
        pool.close()


def test_progress_reaches_every_node(nothing_leaks: None) -> None:
    seen: dict[int, list[int]] = {}
    nodes = [node(40 * MIB), node(2 * MIB, 40 * MIB)]

    def progress(i: int, done: int, total: int) -> None:
        assert total == nodes[i].bytes
        seen.setdefault(i, []).append(done)

    Pool(nodes, progress=progress).close()
    assert {i: done[-1] for i, done in seen.items()} == {0: 40 * MIB, 1: 2 * MIB}
    assert seen[0] == sorted(seen[0]) and len(seen[0]) > 1


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_on_the_way_leaves_nothing(
    nothing_leaks: None, error: type[BaseException]
) -> None:
    def progress(i: int, done: int, total: int) -> None:
        raise error

    with pytest.raises(error):
        Pool([node(64 * MIB)], progress=progress)


def test_interrupt_while_waiting_for_the_child(nothing_leaks: None) -> None:
    """A stopped child makes the parent wait for ever, until a signal handler raises."""
    def progress(i: int, done: int, total: int) -> None:
        os.kill(int(children()[0]), signal.SIGSTOP)
        signal.setitimer(signal.ITIMER_REAL, 0.2)

    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            Pool([node(256 * MIB)], progress=progress)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_killed_child_is_a_host_error(nothing_leaks: None) -> None:
    def progress(i: int, done: int, total: int) -> None:
        for pid in children():
            os.kill(int(pid), signal.SIGKILL)

    with pytest.raises(rm.HostError, match=r"node 0: .*killed.*ask for less") as caught:
        Pool([node(256 * MIB)], progress=progress)
    assert caught.value.errno == errno.ENOMEM


def test_the_child_is_no_child_of_others(nothing_leaks: None) -> None:
    """A program that reaps all its children, or counts SIGCHLD, does not notice ours."""
    noticed = []
    before = signal.signal(signal.SIGCHLD, lambda *args: noticed.append(args))

    def progress(i: int, done: int, total: int) -> None:
        with pytest.raises(ChildProcessError):
            os.waitpid(-1, os.WNOHANG)

    try:
        Pool([node(32 * MIB)], progress=progress).close()
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert noticed == []


@pytest.mark.parametrize(("nodes", "message"), [
    ([PoolNode(4 * MIB, 4096, 0, 4096, 65536)], "starts at"),
    ([PoolNode(4 * MIB + 1, 0, 0, 0, 65536)], "multiple"),
    ([node(4 * MIB), node(4 * MIB, 2 * MIB)], "below"),
    ([PoolNode(4 * MIB, 0, 0, 4 * MIB, 65536)], "not in its own memory"),
    ([PoolNode(4 * MIB, 0, 0, 0, 4096)], "page array of"),
    ([PoolNode(4 * MIB, 0, 0, 5, 65536)], "page-aligned"),
])
def test_malformed_nodes(nothing_leaks: None, nodes: list[PoolNode], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Pool(nodes)


def test_unknown_backing(nothing_leaks: None) -> None:
    with pytest.raises(ValueError, match="backing"):
        Pool([node(4 * MIB)], backing="8K")


def test_unknown_host_node(nothing_leaks: None) -> None:
    with pytest.raises(rm.HostError, match="host node 1000 does not exist"):
        Pool([node(4 * MIB, host_node=1000)])


def test_more_than_the_host_has(nothing_leaks: None) -> None:
    with pytest.raises(rm.HostError, match="ask for less") as caught:
        Pool([node(1 << 42)])
    assert caught.value.errno == errno.ENOMEM


def test_fork_does_not_inherit_the_memory(python) -> None:  # type: ignore[no-untyped-def]
    done = python(code("""
        import ctypes
        pool = Pool([node(2 << 20), node(2 << 20, 8 << 20)])
        where = pool.direct_map
        pid = os.fork()
        if pid == 0:
            maps = open("/proc/self/maps").read()
            pool.close()            # harmless: nothing of it is mapped here
            os._exit("memfd:realmem" in maps or f"{where:x}-" in maps)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        ctypes.c_char.from_address(where).value = b"7"
        assert os.pread(pool.fds[0], 1, 0) == b"7"
        print("alive")
    """))
    assert done.stdout == "alive\n", done.stderr


def test_touching_the_memory_after_fork_is_a_fault_not_corruption(python) -> None:  # type: ignore[no-untyped-def]
    done = python(code("""
        import ctypes
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        pool = Pool([node(2 << 20)])
        pid = os.fork()
        if pid == 0:
            ctypes.c_char.from_address(pool.direct_map).value
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    """))
    assert done.stdout == f"{-signal.SIGSEGV}\n", done.stderr


def test_address_space_limit(python) -> None:  # type: ignore[no-untyped-def]
    done = python(code("""
        resource.setrlimit(resource.RLIMIT_AS, (512 << 20, 512 << 20))
        before = open("/proc/self/maps").read().count("\\n")
        error = refused([node(600 << 20)])
        assert error.errno == errno.ENOMEM, error
        assert open("/proc/self/maps").read().count("\\n") - before < 3
        Pool([node(32 << 20)]).close()
        print(error)
    """))
    assert "ulimit -v" in done.stdout, done.stderr


@pytest.mark.parametrize(("limit", "value", "advice"), [
    ("NOFILE", "len(os.listdir('/proc/self/fd')) - 1", "ulimit -n"),
    ("FSIZE", "1 << 20", "ulimit -f"),
])
def test_limits_on_descriptors_and_files(  # type: ignore[no-untyped-def]
    python, limit: str, value: str, advice: str
) -> None:
    done = python(code(f"""
        import signal
        fds = sorted(os.listdir("/proc/self/fd"))
        old = resource.getrlimit(resource.RLIMIT_{limit})
        resource.setrlimit(resource.RLIMIT_{limit}, ({value}, old[1]))
        try:
            Pool([node(4 << 20)])
        except rm.HostError as why:
            error = why
        resource.setrlimit(resource.RLIMIT_{limit}, old)
        assert sorted(os.listdir("/proc/self/fd")) == fds
        assert "memfd:realmem" not in open("/proc/self/maps").read()
        Pool([node(4 << 20)]).close()
        print(error)
    """))
    assert advice in done.stdout, done.stderr


def test_memlock_limit(python) -> None:  # type: ignore[no-untyped-def]
    if os.getuid():
        pytest.skip("needs root to become another user")
    done = python(code("""
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (1 << 20, 1 << 20))
        os.setuid(65534)
        error = refused([node(4 << 20)], mlock=True)
        print(error)
        preflight.check_memlock = lambda *args: None
        print(refused([node(4 << 20)], mlock=True))
        Pool([node(4 << 20)]).close()
    """))
    first, second = done.stdout.splitlines()
    assert "RLIMIT_MEMLOCK" in first and "ulimit -l" in first
    assert "cannot lock 4M" in second and "RLIMIT_MEMLOCK" in second
    assert done.returncode == 0, done.stderr


def test_mlock(nothing_leaks: None) -> None:
    left = limits.memlock_left()
    if left is not None and left[1] < 4 * MIB:
        pytest.skip(f"RLIMIT_MEMLOCK leaves {left[1]} bytes")
    before = _locked_kib()
    pool = Pool([node(4 * MIB)], mlock=True)
    assert _locked_kib() - before == 4096
    pool.close()
    assert _locked_kib() == before


def _locked_kib() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmLck:")[1].split()[0])


@pytest.mark.usefixtures("numa_calls")
@pytest.mark.parametrize(("deny", "bound", "verified", "reason"), [
    ("mbind", False, False, "mbind: EPERM"),
    ("move_pages", True, True, "move_pages: EPERM"),
    ("mbind,move_pages", False, False, "mbind: EPERM, move_pages: EPERM"),
])
def test_refused_calls_leave_a_working_pool(  # type: ignore[no-untyped-def]
    refusing, deny: str, bound: bool, verified: bool, reason: str
) -> None:
    if not Path("/proc/self/numa_maps").exists():
        pytest.skip("no /proc/self/numa_maps to fall back to")
    done = refusing([sys.executable, "-c", code("""
        pool = Pool([node(4 << 20), node(2 << 20, 4 << 20)])
        for each in pool.placement:
            print(each.bound, each.verified, each.misplaced_pages, each.reason)
    """)], deny=deny)
    assert done.stdout.splitlines() == [f"{bound} {verified} 0 {reason}"] * 2, done.stderr


def test_nothing_known_is_unverified(refusing) -> None:  # type: ignore[no-untyped-def]
    done = refusing([sys.executable, "-c", code("""
        import realmem.placement
        realmem.placement.numa_maps_pages = lambda where, size: {}
        each = Pool([node(4 << 20)]).placement[0]
        print(each.bound, each.verified, each.misplaced_pages, each.reason)
    """)], errno="ENOSYS")
    assert done.stdout == "False False 0 mbind: ENOSYS, move_pages: ENOSYS\n", done.stderr


@pytest.fixture
def small_cgroup() -> Iterator[Path]:
    """A memory cgroup of our own with a limit of 128 MiB."""
    if os.getuid():
        pytest.skip("needs root to make a cgroup")
    found = limits.cgroup_directories()
    for cgroup in found:
        name = "memory.max" if cgroup.version == 2 else "memory.limit_in_bytes"
        path = cgroup.mount / f"realmem-test-{os.getpid()}"
        try:
            path.mkdir()
        except OSError:
            continue
        try:
            (path / name).write_text(str(128 * MIB))
        except OSError:
            path.rmdir()
            continue
        yield path
        path.rmdir()
        return
    pytest.skip("no writable memory cgroup hierarchy")


def in_cgroup(cgroup: Path, body: str) -> subprocess.CompletedProcess[str]:
    enter = f"import os; open({str(cgroup / 'cgroup.procs')!r}, 'w').write(str(os.getpid()))\n"
    return subprocess.run([sys.executable, "-c", enter + code(body)], capture_output=True,
                          text=True, timeout=60, check=False)


def test_cgroup_limit_is_seen_beforehand(small_cgroup: Path) -> None:
    done = in_cgroup(small_cgroup, """
        error = refused([node(128 << 20), node(128 << 20, 128 << 20)])
        assert error.errno == errno.ENOMEM
        print(error)
        Pool([node(64 << 20)]).close()
    """)
    assert done.returncode == 0, done.stderr
    assert str(small_cgroup) in done.stdout and "raise its memory." in done.stdout


def test_cgroup_limit_kills_only_the_child(small_cgroup: Path) -> None:
    """With the preflight blind, the populating child dies and its parent says so."""
    done = in_cgroup(small_cgroup, """
        preflight.check_cgroups = lambda *args: None
        error = refused([node(256 << 20)])
        assert error.errno == errno.ENOMEM
        assert "memfd:realmem" not in open("/proc/self/maps").read()
        print(error)
        Pool([node(64 << 20)]).close()
    """)
    assert done.returncode == 0, (done.returncode, done.stderr)
    assert "was killed" in done.stdout


def test_thp_needs_the_hosts_consent(nothing_leaks: None) -> None:
    setting, _ = limits.shmem_thp()
    if setting in (None, "never", "deny"):
        with pytest.raises(rm.HostError, match="shmem_enabled"):
            Pool([node(4 * MIB)], backing="thp")
        return
    pool = Pool([node(8 * MIB)], backing="thp")
    try:
        free = sum(int(word) << order for line in Path("/proc/buddyinfo").read_text().splitlines()
                   for order, word in enumerate(line.split()[4:]) if order >= 9)
        if free >= 4 * 2048:
            assert pool.huge_bytes == [8 * MIB]
    finally:
        pool.close()


def test_hugetlb_needs_pages_in_the_pool(nothing_leaks: None) -> None:
    pools = {pages.size_bytes: pages for pages in limits.huge_pages()}
    if 2 * MIB not in pools:
        pytest.skip("this kernel has no 2 MiB huge pages")
    size = (pools[2 * MIB].free + 1) * 2 * MIB
    with pytest.raises(rm.HostError, match=r"write \d+ to .*nr_hugepages") as caught:
        Pool([node(size)], backing="hugetlb-2M")
    assert caught.value.errno == errno.ENOMEM


def test_hugetlb_sizes_are_whole_huge_pages(nothing_leaks: None) -> None:
    with pytest.raises(ValueError, match="multiple of 2097152"):
        Pool([node(3 * MIB)], backing="hugetlb-2M")


def test_hugetlb(nothing_leaks: None) -> None:
    free = {pages.size_bytes: pages.free for pages in limits.huge_pages()}.get(2 * MIB, 0)
    if free < 4:
        pytest.skip(f"{free} free huge pages of 2 MiB, 4 needed")
    pool = Pool([node(8 * MIB)], backing="hugetlb-2M")
    assert pool.huge_bytes == [8 * MIB]
    assert pool.placement == [Placement(HOST_NODE, True, True, 0, None)]
    word(pool.vmemmap).value = 5
    assert word(pool.direct_map).value == 0  # the page array lies beside it, not in it
    pool.close()


def test_preflight_reads_every_backing() -> None:
    assert preflight.BACKINGS["4K"] == mmap.PAGESIZE
