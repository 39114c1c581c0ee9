"""How raw faults are filled: which of the ways a host allows."""

from __future__ import annotations

import errno
import os

from realmem.errors import HostError

SIGSEGV, USERFAULTFD = "sigsegv", "userfaultfd"
# UFFD_FEATURE_SIGBUS, _MINOR_SHMEM, _WP_HUGETLBFS_SHMEM (include/uapi/linux/userfaultfd.h)
_NEEDED = 1 << 7 | 1 << 10 | 1 << 12


def choose(wanted: str) -> str:
    """
    Give the way that a machine goes.

    :param wanted: ``"sigsegv"``, ``"userfaultfd"``, or ``"auto"`` for userfaultfd where it is.
    :raises HostError: userfaultfd was asked for, and the host refuses it or lacks a part.
    :raises ValueError: no such way.
    """
    if wanted == SIGSEGV:
        return SIGSEGV
    if wanted not in (USERFAULTFD, "auto"):
        raise ValueError(f"faults={wanted!r}: 'sigsegv', 'userfaultfd' or 'auto'")
    why = _refusal()
    if why is None:
        return USERFAULTFD
    if wanted == "auto":
        return SIGSEGV
    raise why


def _refusal() -> HostError | None:
    from realmem._core import probe

    refused, features = probe.userfaultfd(True)
    if refused:
        return refusal(refused)
    if features & _NEEDED != _NEEDED:
        return HostError(
            errno.ENOSYS,
            "this kernel's userfaultfd has no minor faults or write protection of shared memory "
            "(Linux 5.19 has); use faults='sigsegv'",
        )
    return None


def refusal(number: int) -> HostError:
    """Give the error for an errno of userfaultfd(2), with what to change."""
    what = f"userfaultfd: {os.strerror(number)}"
    if number in (errno.EMFILE, errno.ENFILE):
        return HostError(number, f"{what}; raise ulimit -n")
    return HostError(
        number, f"{what} (a seccomp filter, or a kernel without it); use faults='sigsegv'"
    )
