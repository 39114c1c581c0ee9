"""The seccomp filter refuses what it should and nothing else."""

import errno
import platform
import sys

import pytest

SYSCALL = """
import ctypes, sys
libc = ctypes.CDLL(None, use_errno=True)
mode = ctypes.c_int()
for nr in map(int, sys.argv[1:]):
    rc = libc.syscall(ctypes.c_long(nr), ctypes.byref(mode), None, 0, None, 0)
    print(ctypes.get_errno() if rc < 0 else 0)
"""
GET_MEMPOLICY, MADVISE = 239, 28

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64",
                                reason="the numbers here are x86-64's")


@pytest.mark.usefixtures("numa_calls")
@pytest.mark.parametrize("deny, expected", [
    (None, errno.EPERM),
    ("get_mempolicy", errno.EPERM),
    ("mbind,get_mempolicy,move_pages", errno.EPERM),
    ("mbind", 0),
])
def test_refuses_what_is_named(refusing, deny, expected):
    done = refusing([sys.executable, "-c", SYSCALL, str(GET_MEMPOLICY)], deny=deny)
    assert (done.stdout.strip(), done.stderr) == (str(expected), "")


def test_other_calls_and_other_errno(refusing):
    done = refusing([sys.executable, "-c", SYSCALL, str(GET_MEMPOLICY), str(MADVISE)],
                    deny="get_mempolicy", errno="ENOSYS")
    first, second = map(int, done.stdout.split())
    assert first == errno.ENOSYS
    assert second not in (errno.ENOSYS, errno.EPERM)
