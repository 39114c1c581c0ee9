"""Files that other programs know: a database, a library, a full disk, a process that is killed."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import signal
import sqlite3
import subprocess
import sysconfig
from pathlib import Path

import numpy as np
import pytest

import realmem as rm
from realmem import MAP_PRIVATE, MAP_SHARED, MS_SYNC, PAGE_SIZE, PROT_READ, PROT_WRITE
from realmem.errors import BusError

RW, P = PROT_READ | PROT_WRITE, PAGE_SIZE


def test_a_database_changed_inside_a_pages_free_space(p, tmp_path):
    """SQLite finds its file sound after a store to bytes that it does not use."""
    path = tmp_path / "base.db"
    with contextlib.closing(sqlite3.connect(path)) as base:
        base.execute("PRAGMA page_size = 4096")
        base.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, words TEXT)")
        base.executemany("INSERT INTO t (words) VALUES (?)", [("word" * 20,)] * 500)
        base.commit()
    size = path.stat().st_size
    a = p.mmap(None, size, RW, MAP_SHARED, path)
    x = np.frombuffer(p.view(a, size), dtype=np.uint8)
    changed = 0
    for page in range(1, size // P):
        head = x[page * P : page * P + 8]
        if head[0] not in (2, 5, 10, 13):
            continue                        # not a page of a b-tree
        cells = int(head[3]) << 8 | int(head[4])
        content = int(head[5]) << 8 | int(head[6])
        free = page * P + (8 if head[0] in (10, 13) else 12) + 2 * cells
        end = page * P + content
        if end - free >= 8:
            x[free : free + 8] = 0xA5
            changed += 1
    assert changed > 5
    p.msync(a, size, MS_SYNC)
    assert path.read_bytes() == p.read(a, size)
    with contextlib.closing(sqlite3.connect(path)) as base:
        assert base.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert base.execute("SELECT count(*) FROM t").fetchone() == (500,)


def libraries():
    """Give shared libraries of this machine, the largest first."""
    import numpy.linalg

    folders = [Path(sysconfig.get_config_var("LIBDIR") or "/usr/lib"),
               Path(numpy.linalg.__file__).parents[2] / "numpy.libs",
               *Path("/usr/lib").glob("*-linux-gnu")]
    found = [path for folder in folders for path in folder.glob("*.so*") if path.is_file()]
    return sorted(found, key=lambda path: -path.stat().st_size)


def test_a_library_reads_as_it_is(p):
    """Scattered over fault-around's windows, raw and by software, while nothing is written."""
    path = next((path for path in libraries() if path.stat().st_size < 24 << 20), None)
    if path is None:
        pytest.skip("no shared library was found")
    wanted = path.read_bytes()
    a = p.mmap(None, len(wanted), PROT_READ, MAP_PRIVATE, path)
    x = np.frombuffer(p.view(a, len(wanted)), dtype=np.uint8)
    pages = np.random.default_rng(1).permutation(len(wanted) // P)
    for page in pages[: len(pages) // 2].tolist():
        assert x[page * P] == wanted[page * P]
    assert p.read(a, len(wanted)) == wanted == x.tobytes()
    assert p.maj_flt <= len(wanted) // (16 * P) + 1


@pytest.mark.conformance("MS-21")
def test_a_full_disk_is_bus_error(p, tmp_path):
    """A store that the file has no place for; what had one is written."""
    if os.getuid() != 0 or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=64k", "none", tmp_path], check=False,
            capture_output=True).returncode != 0:
        pytest.skip("no file system of a small size can be mounted here")
    try:
        path = tmp_path / "file"
        with path.open("wb") as file:
            file.truncate(64 * P)           # a hole
        a = p.mmap(None, 64 * P, RW, MAP_SHARED, path)
        stored = 0
        with pytest.raises(BusError) as caught:
            for page in range(64):
                p.write(a + page * P, b"x" * P)
                stored += 1
        assert caught.value.address == a + stored * P and 8 <= stored <= 16
        with pytest.raises(BusError), p.guard():
            p.view(a + 40 * P, P)[0] = 1
        p.msync(a, 64 * P, MS_SYNC)
        assert path.read_bytes() == b"x" * (stored * P) + bytes((64 - stored) * P)
        p.munmap(a, 64 * P)
    finally:
        subprocess.run(["umount", tmp_path], check=True)


@pytest.mark.crash
def test_what_msync_promised_outlives_the_process(python, path):
    done = python(f"""
import os, signal
import realmem as rm
machine = rm.Machine(1, "8M", window="1G")
p = machine.spawn()
a = p.mmap(None, 3 * 4096, 3, rm.MAP_SHARED, {str(path)!r})
p.view(a, 4096)[0] = 0x71
p.write(a + 4096, b"\\x72")
p.msync(a, 2 * 4096, rm.MS_SYNC)
p.write(a + 8192, b"\\x73")
os.kill(os.getpid(), signal.SIGKILL)
""")
    assert done.returncode == -signal.SIGKILL
    assert [path.read_bytes()[i * P] for i in range(3)] == [0x71, 0x72, 3]


@pytest.mark.parametrize("end", ["machine.close()", "del machine, p", "pass", "p.exit()"])
def test_what_was_stored_is_written_at_the_end(python, path, end):
    """Closed, dropped or left to the interpreter's end."""
    done = python(f"""
import realmem as rm
machine = rm.Machine(1, "8M", window="1G")
p = machine.spawn()
a = p.mmap(None, 3 * 4096, 3, rm.MAP_SHARED, {str(path)!r})
p.write(a, b"\\x71")
p.view(a, 8192)[4096] = 0x72
{end}
""")
    assert done.returncode == 0, done.stderr
    assert [path.read_bytes()[i * P] for i in range(3)] == [0x71, 0x72, 3]


def test_dropped_caches(p, path, machine):
    a = p.mmap(None, 4 * P, RW, MAP_SHARED, path)
    p.madvise(a, 4 * P, rm.MADV_WILLNEED)
    p.write(a, b"\x51")
    p.madvise(a, 4 * P, rm.MADV_DONTNEED)
    assert machine.vmstat["nr_file_pages"] == 4
    machine.drop_caches(1)
    assert machine.vmstat["nr_file_pages"] == machine.vmstat["nr_dirty"] == 1
    assert p.mincore(a, 4 * P) == b"\1\0\0\0"
    assert p.read(a, 1) == b"\x51" and p.read(a + P, 1) == b"\2"
    machine.drop_caches(3)
    for which in (0, 5, -1):
        with pytest.raises(OSError, match="drop_caches takes 1 to 4"):
            machine.drop_caches(which)


def test_a_long_read_tells_how_far_it_came(p, path):
    """In steps of 16 MiB."""
    size = (16 << 20) + 3 * P
    os.truncate(path, size)
    a = p.mmap(None, 32 << 20, PROT_READ, MAP_PRIVATE, path)
    with pytest.raises(BusError) as caught:
        p.read(a, 32 << 20)
    assert (caught.value.address, caught.value.done) == (a + size, size)


def test_descriptors_are_given_back(p, path):
    before = descriptors()
    for name in ("/proc/self/maps", "/proc/self/status", "/proc/self/maps"):
        with pytest.raises(OSError):        # found only once it was opened
            p.mmap(None, P, PROT_READ, MAP_PRIVATE, name)
    for _ in range(20):
        with path.open("r+b") as file:
            a = p.mmap(None, 4 * P, RW, MAP_SHARED, file)
        p.write(a, b"x")
        p.munmap(a, 4 * P)
    assert descriptors() == before


def descriptors():
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("mode", [os.O_APPEND, os.O_DIRECT])
def test_descriptors_with_ways_of_their_own(p, path, mode):
    """Through one that appends, pwrite() would write to the end, and not where it is told to."""
    try:
        fd = os.open(path, os.O_RDWR | mode)
    except OSError as why:
        pytest.skip(f"this file system refuses O_DIRECT: {why}")
    a = p.mmap(None, 4 * P, RW, MAP_SHARED, fd)
    os.close(fd)
    p.write(a + P, b"\x31")
    p.write(a + 3 * P + 2047, b"\x32")
    p.munmap(a, 4 * P)
    assert path.stat().st_size == 3 * P + 2048
    assert path.read_bytes()[P] == 0x31 and path.read_bytes()[-1] == 0x32


@pytest.mark.parametrize("seal", [0, fcntl.F_SEAL_WRITE, 0x10, fcntl.F_SEAL_SHRINK])
def test_memfds_and_their_seals(p, seal):
    """As the kernel has it: F_SEAL_FUTURE_WRITE is 0x10."""
    fd = os.memfd_create("sealed", os.MFD_ALLOW_SEALING)
    os.write(fd, b"x" * P)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seal)
    for flags, prot in ((MAP_SHARED, RW), (MAP_SHARED, PROT_READ), (MAP_PRIVATE, RW)):
        try:
            theirs = mmap.mmap(fd, P, flags, prot)
        except OSError as why:
            with pytest.raises(OSError) as caught:
                p.mmap(None, P, prot, flags, fd)
            assert caught.value.errno == why.errno
        else:
            a = p.mmap(None, P, prot, flags, fd)
            assert p.read(a, P) == theirs[:]
            if prot & PROT_WRITE:
                p.write(a, b"z" if flags == MAP_PRIVATE else b"y")
                p.msync(a, P, MS_SYNC)
                assert os.pread(fd, 1, 0) == bytes(theirs[:1]) != b"z"
            elif seal in (fcntl.F_SEAL_WRITE, 0x10):
                with pytest.raises(OSError) as caught:
                    p.mprotect(a, P, RW)
                assert caught.value.errno == errno.EACCES
            theirs.close()
    os.close(fd)


def test_what_others_write_is_not_taken_for_our_own(p, path):
    """A first store, which gives its page a place, comes between their write and our look."""
    with path.open("r+b", buffering=0) as file:
        a = p.mmap(None, 4 * P, RW, MAP_SHARED, path)
        x = p.view(a, 4 * P)
        p.read(a, 4 * P)
        os.pwrite(file.fileno(), b"NEW", 2 * P)
        x[0] = 9
        assert p.read(a + 2 * P, 3) == b"NEW"
        x[3 * P] = 7
        os.truncate(path, P)
        x[0] = 8
        with pytest.raises(BusError):
            p.read(a + 2 * P, 1)
        p.msync(a, 4 * P, MS_SYNC)
        assert path.read_bytes() == b"\x08" + b"\1" * (P - 1)


def test_a_close_does_not_bring_back_what_was_cut_off(python, path):
    done = python(f"""
import os
import realmem as rm
with rm.Machine(1, "8M", window="1G") as machine:
    p = machine.spawn()
    a = p.mmap(None, 4 * 4096, 3, rm.MAP_SHARED, {str(path)!r})
    p.write(a + 3 * 4096, b"z")
    os.truncate({str(path)!r}, 5)
""")
    assert done.returncode == 0, done.stderr
    assert path.read_bytes() == b"\1" * 5


def test_pins_while_others_write(p, path):
    """A pinned page stays mapped for the host; once it is let go, it follows the file."""
    with path.open("r+b", buffering=0) as file:
        a = p.mmap(None, 4 * P, RW, MAP_SHARED, path)
        read, write = os.pipe()
        with p.pin(a + P, P, write=True) as view:
            p.read(a, 3 * P)
            os.pwrite(file.fileno(), b"NEW", 0)
            assert p.read(a, 3) == b"NEW"
            os.write(write, b"through")
            assert os.readv(read, [view]) == 7
            p.msync(a, 4 * P, MS_SYNC)
            os.write(write, b"THROUGH")
            assert os.readv(read, [view]) == 7      # written back, and still open for it
        p.msync(a, 4 * P, MS_SYNC)
        assert os.pread(file.fileno(), 7, P) == b"THROUGH"
        with p.pin(a + 2 * P, P):
            os.pwrite(file.fileno(), b"NEW", 2 * P)
            p.read(a, 1)
        assert p.read(a + 2 * P, 3) == b"NEW"
        os.close(read)
        os.close(write)


def test_locked_pages_that_others_change(p, path, machine):
    a = p.mmap(None, 4 * P, PROT_READ, MAP_SHARED, path)
    p.mlock(a, 4 * P)
    with path.open("r+b", buffering=0) as file:
        os.pwrite(file.fileno(), b"NEW", P)
    assert p.read(a + P, 3) == b"NEW"
    machine.check()
    os.truncate(path, P)
    p.munlock(a, 4 * P)
    machine.check()


def test_a_descriptor_that_is_told_to_append_later(p, path):
    with path.open("r+b", buffering=0) as file:
        a = p.mmap(None, 4 * P, RW, MAP_SHARED, file)
        fcntl.fcntl(file.fileno(), fcntl.F_SETFL, os.O_APPEND)
        p.write(a, b"first")
        p.msync(a, P, MS_SYNC)
    assert path.stat().st_size == 3 * P + 2048 and path.read_bytes()[:5] == b"first"


@pytest.mark.parametrize("name", ["/proc/self/maps", "/proc/self/mem", "/proc/self/status",
                                  "/sys/kernel/mm/transparent_hugepage/enabled"])
def test_files_that_look_as_others(p, name):
    try:
        Path(name).open("rb").close()
    except OSError as why:
        pytest.skip(f"{name} cannot be opened: {why}")
    with pytest.raises(OSError) as caught:
        p.mmap(None, P, PROT_READ, MAP_PRIVATE, name)
    assert caught.value.errno == errno.ENODEV


def test_a_memfd_that_is_mapped_is_not_sealed(p):
    fd = os.memfd_create("sealed", os.MFD_ALLOW_SEALING)
    os.write(fd, b"x" * P)
    a = p.mmap(None, P, RW, MAP_SHARED, fd)
    with pytest.raises(OSError) as caught:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    assert caught.value.errno == errno.EBUSY
    p.munmap(a, P)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    os.close(fd)


def test_a_file_that_was_removed_or_replaced(p, path):
    """The mapping stays with the file that was opened."""
    a = p.mmap(None, 4 * P, RW, MAP_SHARED, path)
    path.unlink()
    path.write_bytes(b"\x66" * P)
    b = p.mmap(None, P, RW, MAP_SHARED, path)
    assert p.read(a, 1) == b"\1" and p.read(b, 1) == b"\x66"
    p.write(a, b"\x67")
    p.msync(a, P, MS_SYNC)
    assert p.read(b, 1) == b"\x66"


def test_no_descriptors_left(python, path):
    done = python(f"""
import errno, resource
import realmem as rm
machine = rm.Machine(1, "8M", window="1G")
p = machine.spawn()
p.mmap(None, 4096, 3, 0x22)
resource.setrlimit(resource.RLIMIT_NOFILE, (len(__import__("os").listdir("/proc/self/fd")), 4096))
file = None
try:
    p.mmap(None, 4096, 3, rm.MAP_SHARED, {str(path)!r})
except OSError as error:
    assert error.errno == errno.EMFILE, error
else:
    raise AssertionError
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 4096))
a = p.mmap(None, 4096, 3, rm.MAP_SHARED, {str(path)!r})
p.write(a, b"y")
machine.check()
""")
    assert done.returncode == 0, done.stderr
    assert path.read_bytes()[0] == ord("y")
