"""
Run a command whose system calls of certain names are refused, as seccomp in a container does.

    python tests/refuse.py [--deny mbind,move_pages,...] [--errno EPERM] -- COMMAND...

The default is what a default container refuses of NUMA: mbind, move_pages and get_mempolicy (with
set_mempolicy, migrate_pages and set_mempolicy_home_node, which go the same way).  The filter is
inherited by every child and cannot be taken back.  Standard library only; tests use it through
the fixture `refusing`.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import os
import platform
import struct
import sys

# (audit architecture, {name: number})
ARCHITECTURES = {
    "x86_64": (0xC000003E, {
        "mbind": 237, "set_mempolicy": 238, "get_mempolicy": 239, "migrate_pages": 256,
        "move_pages": 279, "set_mempolicy_home_node": 450, "mlock": 149, "mlock2": 325,
        "userfaultfd": 323, "memfd_create": 319, "madvise": 28, "mprotect": 10,
        "perf_event_open": 298}),
    "aarch64": (0xC00000B7, {
        "mbind": 235, "get_mempolicy": 236, "set_mempolicy": 237, "migrate_pages": 238,
        "move_pages": 239, "set_mempolicy_home_node": 450, "mlock": 228, "mlock2": 284,
        "userfaultfd": 282, "memfd_create": 279, "madvise": 233, "mprotect": 226,
        "perf_event_open": 241}),
}
NUMA = ("mbind", "set_mempolicy", "get_mempolicy", "migrate_pages", "move_pages",
        "set_mempolicy_home_node")

PR_SET_NO_NEW_PRIVS = 38
PR_SET_SECCOMP = 22
SECCOMP_MODE_FILTER = 2
SECCOMP_RET_ALLOW = 0x7FFF0000
SECCOMP_RET_ERRNO = 0x00050000
BPF_LD_W_ABS = 0x20
BPF_JEQ = 0x15
BPF_RET = 0x06


class Program(ctypes.Structure):
    """The kernel's struct sock_fprog."""

    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]


def instruction(code: int, k: int, if_true: int = 0, if_false: int = 0) -> bytes:
    """Encode one struct sock_filter."""
    return struct.pack("=HBBI", code, if_true, if_false, k)


def refuse(names: tuple[str, ...], number: int = errno.EPERM) -> None:
    """Refuse these system calls with this errno, in this thread and all its children."""
    architecture, numbers = ARCHITECTURES[platform.machine()]
    wanted = [numbers[name] for name in names]
    program = [
        instruction(BPF_LD_W_ABS, 4),                           # seccomp_data.arch
        instruction(BPF_JEQ, architecture, 0, len(wanted) + 1),     # foreign: allow
        instruction(BPF_LD_W_ABS, 0),                           # seccomp_data.nr
        *(instruction(BPF_JEQ, nr, len(wanted) - at, 0) for at, nr in enumerate(wanted)),
        instruction(BPF_RET, SECCOMP_RET_ALLOW),
        instruction(BPF_RET, SECCOMP_RET_ERRNO | number),
    ]
    install(program)


def refuse_ioctl(command: int, number: int = errno.EPERM) -> None:
    """Refuse one command of ioctl(2) with this errno, likewise."""
    nr = {"x86_64": 16, "aarch64": 29}[platform.machine()]
    install([
        instruction(BPF_LD_W_ABS, 0),
        instruction(BPF_JEQ, nr, 0, 3),
        instruction(BPF_LD_W_ABS, 24),                          # seccomp_data.args[1]
        instruction(BPF_JEQ, command, 0, 1),
        instruction(BPF_RET, SECCOMP_RET_ERRNO | number),
        instruction(BPF_RET, SECCOMP_RET_ALLOW),
    ])


def refuse_clearing(address: int, number: int = errno.ENOMEM) -> None:
    """Refuse mmap(2) without any right at one address, on x86-64, likewise."""
    install([
        instruction(BPF_LD_W_ABS, 0),
        instruction(BPF_JEQ, 9, 0, 7),
        instruction(BPF_LD_W_ABS, 32),                          # seccomp_data.args[2]: prot
        instruction(BPF_JEQ, 0, 0, 5),
        instruction(BPF_LD_W_ABS, 16),                          # args[0], the lower half
        instruction(BPF_JEQ, address & 0xFFFFFFFF, 0, 3),
        instruction(BPF_LD_W_ABS, 20),
        instruction(BPF_JEQ, address >> 32, 0, 1),
        instruction(BPF_RET, SECCOMP_RET_ERRNO | number),
        instruction(BPF_RET, SECCOMP_RET_ALLOW),
    ])


def install(program: list[bytes]) -> None:
    """Have the calling thread filtered by a program from now on."""
    code = ctypes.create_string_buffer(b"".join(program))
    header = Program(len(program), ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    for call in ((PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
                 (PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(header), 0, 0)):
        words = [word if not isinstance(word, int) else ctypes.c_ulong(word) for word in call]
        if libc.prctl(*words):
            code_ = ctypes.get_errno()
            raise OSError(code_, f"prctl({call[0]}): {os.strerror(code_)}")


def main() -> None:
    """Run as a command."""
    parser = argparse.ArgumentParser(description="Run a command with system calls refused.")
    parser.add_argument("--deny", default=",".join(NUMA), help="names, separated by commas")
    parser.add_argument("--errno", default="EPERM")
    parser.add_argument("command", nargs="+")
    chosen = parser.parse_args()
    refuse(tuple(chosen.deny.split(",")), getattr(errno, chosen.errno))
    os.execvp(chosen.command[0], chosen.command)


if __name__ == "__main__":
    sys.exit(main())
