"""
A child that makes system calls on itself, one a line, so that the kernel can be asked.

It holds no memory where a call may place something: allocations go to the heap, and what small
gaps there are between its libraries is filled.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

PAGE = 4096
_SYSCALLS = {"mmap": 9, "mprotect": 10, "munmap": 11, "mremap": 25, "msync": 26, "mincore": 27,
             "madvise": 28, "mlock": 149, "munlock": 150, "mlockall": 151, "munlockall": 152,
             "prctl": 157, "mlock2": 325, "mseal": 462}  # fmt: skip


class HostProcess:
    """The parent's side: calls by name, answers as (result, errno)."""

    def __init__(self, *, memlock=None, capable=True):
        env = {**os.environ, "PYTHONMALLOC": "malloc", "MALLOC_TOP_PAD_": str(32 << 20),
               "MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_ARENA_MAX": "1"}
        options = json.dumps({"memlock": memlock, "capable": capable})
        self._child = subprocess.Popen(
            [sys.executable, "-S", "-E", __file__, options], env=env, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=1,
        )  # fmt: skip
        self.pid = self._child.pid
        assert self._child.stdout.readline() == "ready\n"

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self._child.stdin.close()
        self._child.wait(timeout=30)
        self._child.stdout.close()

    def call(self, name, *args):
        self._child.stdin.write(json.dumps([name, *args]) + "\n")
        result, error = json.loads(self._child.stdout.readline())
        return result, error

    def smaps(self):
        return Path(f"/proc/{self.pid}/smaps").read_text()

    def locked_kb(self):
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(re.search(r"VmLck:\s+(\d+)", status)[1])


def _serve(options):
    libc = ctypes.CDLL(None, use_errno=True)
    syscall = libc.syscall
    syscall.restype = ctypes.c_long
    vector = ctypes.create_string_buffer(1 << 16)

    def call(name, *args):
        if name == "touch":
            ctypes.memset(args[0], 1, 1)
            return 0, 0
        if name == "look":
            return ctypes.string_at(args[0], 1)[0], 0
        if name == "mincore":
            args = (*args, ctypes.addressof(vector))
        words = [ctypes.c_ulong(arg & (1 << 64) - 1) for arg in args]
        result = syscall(ctypes.c_long(_SYSCALLS[name]), *words)
        if result == -1:
            return -1, ctypes.get_errno()
        if name == "mincore":
            pages = (args[1] + PAGE - 1) // PAGE
            return [byte & 1 for byte in vector.raw[:pages]], 0
        return result, 0

    # Fill the gaps that a search from the top would find before the wide one.
    in_a_row, last = 0, 0
    while in_a_row < 256:
        addr, _ = call("mmap", 0, PAGE, 4, 0x4022, -1, 0)
        in_a_row = in_a_row + 1 if addr == last - PAGE else 0
        last = addr
    if options["memlock"] is not None:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (options["memlock"],) * 2)
    if not options["capable"]:
        os.setresuid(65534, 65534, 65534)
        libc.prctl(4, 1, 0, 0, 0)       # so that the parent may look all the same
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(call(*json.loads(line))), flush=True)


if __name__ == "__main__":
    _serve(json.loads(sys.argv[1]))
