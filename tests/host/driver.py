"""
Start drivers and talk to them: processes of the host kernel that do nothing of their own.

The first one is a freshly executed interpreter that turns itself into a driver
(cython/realmem/_bench/host_driver.pyx); all others are its forks.  It is executed without address
space randomisation and with a stack limit that puts the top of the mmap area on a round address.
"""

from __future__ import annotations

import importlib.util
import os
import resource
import select
import socket
import struct
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from realmem._bench import host_driver

SLOTS = 10
PAGE = 4096
SYSCALL, LOAD, STORE, TOUCH, FORK = range(5)
COMMAND = struct.Struct("<8Q")
REPLY = struct.Struct("<q4Q")
PATIENCE_MS = 20_000
DATA_BYTES = host_driver.DATA_PAGES * PAGE
OWN_BYTES = host_driver.CODE_PAGES * PAGE + DATA_BYTES
OWN = range(host_driver.LOW, host_driver.LOW + OWN_BYTES)
# mm/util.c:mmap_base(): the gap below TASK_SIZE is this limit, a guard gap and nothing random.
STACK_LIMIT = (1 << 30) - (1 << 20) - PAGE

# Runs twice: the second time without randomisation and with the limit in force.
CHILD = """
import importlib.machinery, importlib.util, os, resource, signal, sys
first, brk, path, again, stack = sys.argv[1:]
if not int(again):
    import ctypes
    ctypes.CDLL(None).personality(0x0040000)
    hard = resource.getrlimit(resource.RLIMIT_STACK)[1]
    try:
        resource.setrlimit(resource.RLIMIT_STACK, (int(stack), hard))
    except (OSError, ValueError):
        pass
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:-2], "1", stack])
loader = importlib.machinery.ExtensionFileLoader("host_driver", path)
module = importlib.util.module_from_spec(importlib.util.spec_from_loader("host_driver", loader))
loader.exec_module(module)
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
with open("/proc/self/maps") as maps:
    spans = [line.split()[0].split("-") for line in maps if not line.endswith("[vsyscall]\\n")]
ends = [int(end, 16) for _, end in spans]
# Each range begins where the one before ends: a heap may have grown since.  One that can't be
# unmapped (sealed by the kernel) leaves the others alone.
low = module.LOW + 4096 * (module.CODE_PAGES + module.DATA_PAGES)
module.become(int(first), int(brk), zip([low, *ends], [*ends, (1 << 47) - 4096]))
"""


class Reply(NamedTuple):
    """
    What a driver answers.

    :ivar ret: of the system call, or how many accesses were made.
    :ivar sig: the signal that ended the accesses, or 0.
    :ivar code: its si_code.
    :ivar address: its si_addr.
    :ivar hash: of what was loaded.
    """

    ret: int
    sig: int
    code: int
    address: int
    hash: int


class DriverLostError(RuntimeError):
    """A driver died or does not answer."""


class Drivers:
    """
    A family of drivers, by slots; slot 0 is the first one, which stays as it is.

    :param brk: where heaps begin.
    :param keep: descriptors that they are to have, too.
    :ivar foreign: mappings that could not be taken away from the first one.
    """

    def __init__(self, brk: int, keep: Iterable[int] = ()) -> None:
        pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(SLOTS)]
        self._sockets = [ours for ours, _ in pairs]
        first = 600
        fds = []
        for slot, (_, theirs) in enumerate(pairs):
            os.dup2(theirs.fileno(), first + slot, inheritable=True)
            fds.append(first + slot)
            theirs.close()
        path = importlib.util.find_spec("realmem._bench.host_driver")
        assert path is not None and path.origin is not None
        self._child = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", CHILD, str(first), str(brk), path.origin, "0",
             str(STACK_LIMIT)],
            pass_fds=[*fds, *keep], stdin=subprocess.DEVNULL,
            env={**os.environ, "GLIBC_TUNABLES": "glibc.pthread.rseq=0", "PYTHONMALLOC": "malloc"},
        )
        for fd in fds:
            os.close(fd)
        self.pids = {0: self._child.pid}
        ready = self._receive(0)
        self.brk_is_set = ready.code == 0 and brk != 0
        self.foreign = tuple(span for span in spans(self._child.pid) if span[0] not in OWN)

    def command(self, slot: int, op: int, nr: int = 0, *args: int, more: bytes = b"") -> Reply:
        """Have one driver do something."""
        words = [word & (1 << 64) - 1 for word in args]
        words += [0] * (6 - len(words))
        self._sockets[slot].send(COMMAND.pack(op, nr, *words) + more)
        return self._receive(slot)

    def call(self, slot: int, nr: int, *args: int, more: bytes = b"") -> int:
        """Make a system call; `more` comes to lie at `MORE`."""
        return self.command(slot, SYSCALL, nr, *args, more=more).ret

    def fork(self, parent: int, slot: int) -> int:
        """Fork one driver into a free slot."""
        pid = self.command(parent, FORK, 0, slot).ret
        if pid > 0:
            self.pids[slot] = pid
        return pid

    def end(self, slot: int) -> None:
        """End one and wait until nothing is left of it."""
        fd = os.pidfd_open(self.pids.pop(slot))
        try:
            self._sockets[slot].send(b"bye")
            poll = select.poll()
            poll.register(fd, select.POLLIN)
            if not poll.poll(PATIENCE_MS):
                raise DriverLostError(f"driver {slot} does not exit")
        finally:
            os.close(fd)

    def close(self) -> None:
        """End all."""
        for each in self._sockets:
            each.close()
        self._child.wait()

    def _receive(self, slot: int) -> Reply:
        ours = self._sockets[slot]
        poll = select.poll()
        poll.register(ours, select.POLLIN)
        if not poll.poll(PATIENCE_MS):
            raise DriverLostError(f"driver {slot} does not answer")
        data = ours.recv(REPLY.size)
        if len(data) != REPLY.size:
            raise DriverLostError(f"driver {slot} is gone")
        return Reply(*REPLY.unpack(data))


MORE = host_driver.IN + COMMAND.size
OUT = host_driver.OUT
LOW = host_driver.LOW


def spans(pid: int) -> list[tuple[int, int]]:
    """List the mappings of a process."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    found = [line.split(None, 1)[0].split("-") for line in lines if "[vsyscall]" not in line]
    return [(int(start, 16), int(end, 16)) for start, end in found]


def set_rlimit(pid: int, which: int, soft: int) -> None:
    """Set a soft limit of a process, no higher than its hard one."""
    hard = resource.prlimit(pid, which)[1]
    if hard != resource.RLIM_INFINITY:
        soft = min(soft, hard)
    resource.prlimit(pid, which, (soft if soft < 1 << 63 else resource.RLIM_INFINITY, hard))
