"""Random stores, syncs, writes by others, truncations and forks: as with the kernel's own mmap."""

from __future__ import annotations

import contextlib
import ctypes
import os
import tempfile
from pathlib import Path

import pytest
from backends import BACKENDS, needs_backend
from hypothesis import example, given, settings
from hypothesis import strategies as st

import realmem as rm
from realmem import MAP_PRIVATE, MAP_SHARED, MS_SYNC, PAGE_SIZE, PROT_READ, PROT_WRITE
from realmem.errors import BusError

RW, P = PROT_READ | PROT_WRITE, PAGE_SIZE
PAGES = 40                          # of each mapping: some more than two windows of read-ahead
LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.mmap.restype = ctypes.c_void_p
LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
LIBC.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
SIZES = st.one_of(st.integers(0, PAGES * P), st.integers(0, PAGES).map(lambda n: n * P))

steps = st.one_of(
    st.tuples(st.sampled_from(["store", "raw store"]), st.integers(0, 2),
              st.integers(0, PAGES * P)),
    st.tuples(st.just("fill"), st.integers(0, 2), st.integers(0, PAGES)),
    st.tuples(st.just("other writes"), st.integers(0, PAGES * P), st.integers(1, 3 * P)),
    st.tuples(st.just("truncate"), SIZES, st.none()),
    st.tuples(st.sampled_from(["sync", "fork", "drop"]), st.integers(0, 2), st.none()),
    st.tuples(st.just("remap"), st.integers(0, 2), st.integers(0, PAGES - 1)),
)


class Side:
    """A file, and three mappings of it: shared, private, shared from a page on."""

    def __init__(self, folder, name, size):
        self.path = Path(folder) / name
        self.path.write_bytes(bytes(range(256)) * (size // 256 + 1))
        os.truncate(self.path, size)
        self.file = self.path.open("r+b", buffering=0)
        self.kinds = [(MAP_SHARED, 0), (MAP_PRIVATE, 0), (MAP_SHARED, 3)]
        self.maps = [self.map(kind, first) for kind, first in self.kinds]

    @property
    def size(self):
        return self.path.stat().st_size

    def remap(self, which, first):
        self.unmap(self.maps[which])
        self.kinds[which] = self.kinds[which][0], first
        self.maps[which] = self.map(*self.kinds[which])

    def contents(self):
        """Give what each mapping has of the file."""
        return [self.read(at, max(min(self.size - first * P, PAGES * P), 0))
                for at, (_, first) in zip(self.maps, self.kinds, strict=True)]


class Host(Side):
    """The kernel's."""

    def map(self, kind, first):
        return LIBC.mmap(None, PAGES * P, RW, kind, self.file.fileno(), first * P)

    def unmap(self, at):
        LIBC.munmap(at, PAGES * P)

    def read(self, at, n):
        return ctypes.string_at(at, n)

    def write(self, at, data, raw):
        ctypes.memmove(at, data, len(data))

    def sync(self):
        pass

    def close(self):
        for at in self.maps:
            self.unmap(at)
        self.file.close()


class Ours(Side):
    """realmem's."""

    def __init__(self, folder, size, faults):
        self.machine = rm.Machine(1, "16M", window="1G", faults=faults, debug=1)
        self.process = self.machine.spawn()
        super().__init__(folder, "ours", size)

    def map(self, kind, first):
        return self.process.mmap(None, PAGES * P, RW, kind, self.file, first * P)

    def unmap(self, at):
        self.process.munmap(at, PAGES * P)

    def read(self, at, n):
        return self.process.read(at, n)

    def write(self, at, data, raw):
        if raw:
            with self.process.guard():
                self.process.view(at, len(data))[:] = data
        else:
            self.process.write(at, data)

    def sync(self):
        for at, (kind, _) in zip(self.maps, self.kinds, strict=True):
            if kind == MAP_SHARED:
                self.process.msync(at, PAGES * P, MS_SYNC)
        for inode in self.machine._paging.mmu.inodes.values():      # what is mapped no more, too
            assert inode.write_back() == 0
            assert inode.dirty() == 0

    def fork(self):
        """Go on as the child; the parent ends."""
        self.process, parent = self.process.fork(), self.process
        parent.exit()

    def close(self):
        self.machine.check()
        self.process.exit()
        assert not self.machine._paging.mmu.inodes
        self.machine.close()
        self.file.close()


def take(step, host, ours, turn):
    """Take one step on both sides."""
    what, one, two = step
    size = host.size
    data = bytes([turn % 255 + 1])
    if what in ("store", "raw store", "fill"):
        room = size - host.kinds[one][1] * P
        at = two * P if what == "fill" else two
        length = min(P if what == "fill" else 5, room - at, PAGES * P - at)
        if length > 0:
            for side in (host, ours):
                side.write(side.maps[one] + at, data * length, what == "raw store")
    elif what == "other writes":
        ours.sync()                     # of two who write the same page, ours comes last
        for side in (host, ours):
            os.pwrite(side.file.fileno(), data * two, one)
    elif what == "truncate":
        for side in (host, ours):
            os.truncate(side.path, one)
    elif what == "sync":
        ours.sync()
        assert ours.path.read_bytes() == host.path.read_bytes()
    elif what == "fork":
        ours.fork()
    elif what == "drop":
        ours.process.mm.core.flush(ours.maps[one], ours.maps[one] + PAGES * P)
    else:
        for side in (host, ours):
            side.remap(one, two)


@pytest.mark.parametrize("faults", BACKENDS)
@settings(max_examples=60)
@example([("store", 0, 5), ("sync", 0, None), ("truncate", 3, None),
          ("truncate", 9000, None)], 9000)
@given(st.lists(steps, min_size=1, max_size=25), SIZES)
def test_contents_are_the_kernels(faults, sequence, size):
    needs_backend(faults)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        host = Host(folder, "host", size)
        stack.callback(host.close)
        ours = Ours(folder, size, faults)
        stack.callback(ours.close)
        for turn, step in enumerate(sequence):
            take(step, host, ours, turn)
            assert ours.size == host.size, step
            for mine, theirs in zip(ours.contents(), host.contents(), strict=True):
                assert mine == theirs, step
            for at, (_, first) in zip(ours.maps, ours.kinds, strict=True):
                beyond = -(-host.size // P) - first
                if 0 <= beyond < PAGES:
                    with pytest.raises(BusError):
                        ours.process.read(at + beyond * P, 1)
        ours.machine.check()
        ours.sync()
        assert ours.path.read_bytes() == host.path.read_bytes()
