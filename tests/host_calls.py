"""
Sequences of memory calls run by the kernel under the tests.

``run(sequences)`` starts one child, which forks once for each sequence: every process begins with
the same empty arena.  After each call comes what it returned (or minus the errno) and the VMAs of
the arena with their rights and VmFlags.  As a program it is that child.

Calls, addresses within the arena: ``mmap addr length prot flags``, ``munmap addr length``,
``mprotect addr length prot``, ``mseal addr length flags``, ``touch addr pages`` (stores, as far as
they are allowed), ``brk offset`` from the heap's start, and ``fork`` (the child goes on).
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import struct
import subprocess
import sys
from pathlib import Path

ARENA = 0x6000_0000_0000          # above any program, below any library
ARENA_END = ARENA + (1 << 30)
HEAP = ARENA + (1 << 29)
NUMBERS = {"mmap": 9, "mprotect": 10, "munmap": 11, "brk": 12, "prctl": 157, "mseal": 462}
PROCESS_VM_WRITEV = 311
PR_SET_MM, PR_SET_MM_MAP = 35, 14
# What only some kernels show, or none asks for here.
IGNORED = {"sd"}


def run(sequences, timeout=120):
    """Give for each sequence the list of (result, VMAs) after each call."""
    # Python's own heap must not move the break that sequences move.
    env = os.environ | {"MALLOC_TOP_PAD_": str(1 << 26), "MALLOC_TRIM_THRESHOLD_": str(1 << 40)}
    done = subprocess.run(
        [sys.executable, "-S", "-E", __file__],
        input=json.dumps(sequences),
        capture_output=True,
        text=True,
        timeout=timeout,
        env=env,
        check=True,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def layout(smaps):
    """Read the arena's VMAs from the text of smaps: [start, end, rights, flags]."""
    vmas = []
    at = smaps.find(f"\n{ARENA >> 32:x}") + 1        # most of the text is about others
    for line in smaps[at:].splitlines() if at else ():
        head = re.match(r"([0-9a-f]+)-([0-9a-f]+) (\S+)", line)
        if head:
            start, end = int(head[1], 16), int(head[2], 16)
            if not ARENA <= start < ARENA_END:
                break
            vmas.append([start, end, head[3], []])
        elif line.startswith("VmFlags:"):
            vmas[-1][3] = sorted(set(line.split()[1:]) - IGNORED)
    return vmas


class _Caller:
    def __init__(self):
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.libc.syscall.restype = ctypes.c_long
        self.page = ctypes.create_string_buffer(b"x")

    def call(self, number, *args):
        args = [ctypes.c_long(((a + 2**63) % 2**64) - 2**63) for a in args]
        args += [ctypes.c_long(0)] * (6 - len(args))
        result = self.libc.syscall(ctypes.c_long(number), *args)
        return -ctypes.get_errno() if result == -1 else result

    def step(self, name, *args):
        if name == "fork":
            pid = os.fork()
            if pid:
                os._exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
            return 0
        if name == "touch":
            return self.touch(*args)
        if name == "brk":
            return self.call(NUMBERS["brk"], HEAP + args[0]) - HEAP
        result = self.call(NUMBERS[name], *args, *([-1, 0] if name == "mmap" else []))
        if name == "mmap" and result >= 0 and not ARENA <= result < ARENA_END:
            self.call(NUMBERS["munmap"], result, args[1])
            return "elsewhere"
        return result

    def touch(self, addr, pages):
        """Store a byte a page, as the kernel does it: no signal where it may not."""
        local = (ctypes.c_long * 2)(ctypes.addressof(self.page), 1)
        for i in range(pages):
            remote = (ctypes.c_long * 2)(addr + i * 4096, 1)
            done = self.call(
                PROCESS_VM_WRITEV, os.getpid(), ctypes.addressof(local), 1,
                ctypes.addressof(remote), 1, 0,
            )  # fmt: skip
            if done != 1:
                return i
        return pages

    def move_heap(self):
        """Have the heap begin in the arena (PR_SET_MM_MAP, of checkpoint and restore)."""
        words = Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()
        # Code, data, break, stack, arguments, environment: fields 26 and on of proc(5).
        kept = {i: int(words[i - 3]) for i in (26, 27, 45, 46, 28, 48, 49, 50, 51)}
        order = (26, 27, 45, 46, 0, 0, 28, 48, 49, 50, 51)
        values = [kept.get(i, HEAP) for i in order]
        layout = struct.pack("11QQIi", *values, 0, 0, -1)
        where = ctypes.create_string_buffer(layout, len(layout))
        address = ctypes.addressof(where)
        return self.call(NUMBERS["prctl"], PR_SET_MM, PR_SET_MM_MAP, address, len(layout)) == 0


def _main():
    caller = _Caller()
    for sequence in json.load(sys.stdin):
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            if any(step[0] == "brk" for step in sequence) and not caller.move_heap():
                print("null", flush=True)
                os._exit(0)
            results = []
            for step in sequence:
                result = caller.step(*step)
                results.append([result, layout(Path("/proc/self/smaps").read_text())])
            print(json.dumps(results), flush=True)
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        if status:
            sys.exit(f"a sequence ended with {status}: {sequence}")


if __name__ == "__main__":
    _main()
