"""Which system calls this host permits, found out by trying them in a harmless way."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path

from realmem._core import probe
from realmem.host import limits
from realmem.layout import format_size

# include/uapi/linux/userfaultfd.h and membarrier.h
UFFD_FEATURES = {"sigbus": 1 << 7, "minor-shmem": 1 << 10, "wp-shmem": 1 << 12}
MEMBARRIER_PRIVATE_EXPEDITED = 1 << 3


@dataclass(frozen=True)
class Capability:
    """
    One thing a host permits or refuses.

    :ivar reason: of the refusal, such as ``"EPERM"``; None when it is permitted.
    :ivar detail: what goes with it: features, limits.
    :ivar needed_for: what realmem uses it for.
    """

    name: str
    permitted: bool
    reason: str | None
    detail: str | None
    needed_for: str


def capabilities() -> list[Capability]:
    """Try everything that realmem would use."""
    node = next(iter(limits.mems_allowed()), 0)
    user_why, user_features = probe.userfaultfd(True)
    full_why, full_features = probe.userfaultfd(False)
    barrier_why, barriers = probe.membarrier()
    if not barrier_why and not barriers & MEMBARRIER_PRIVATE_EXPEDITED:
        barrier_why = errno.ENOSYS
    return [
        _made("mbind", probe.mbind(node), None, "placing memory"),
        _made("move_pages", probe.move_pages(), None, "checking its place"),
        _made("get_mempolicy", probe.get_mempolicy(), None, "asking for policies"),
        _numa_maps(),
        _made("memfd_create", _memfd(0), None, "the memory itself"),
        _made("hugetlb", _memfd(os.MFD_HUGETLB), _hugetlb_detail(), "option backing"),
        _made("mlock", probe.mlock(), _mlock_detail(), "option mlock"),
        _made("madvise populate", probe.madv_populate(), None, "mapping at once"),
        _made(
            "userfaultfd",
            user_why,
            _features(user_features),
            "fills that split no mapping",
        ),
        _made("userfaultfd kernel", full_why, _features(full_features), "faults in system calls"),
        _made("membarrier", barrier_why, None, "draining page lists"),
    ]


def _made(name: str, why: int, detail: str | None, needed_for: str) -> Capability:
    reason = errno.errorcode.get(why, str(why)) if why else None
    return Capability(name, not why, reason, None if why else detail, needed_for)


def _numa_maps() -> Capability:
    path = Path("/proc/self/numa_maps")
    why = 0
    try:
        with path.open("rb") as file:
            file.read(1)
    except OSError as error:
        why = error.errno or errno.EIO
    return _made("numa_maps", why, None, "checking, if that is refused")


def _memfd(flags: int) -> int:
    try:
        os.close(os.memfd_create("realmem-probe", flags | os.MFD_CLOEXEC))
    except OSError as error:
        return error.errno or errno.EIO
    return 0


def _hugetlb_detail() -> str:
    free = [f"{pool.free} x {format_size(pool.size_bytes)}" for pool in limits.huge_pages()]
    return f"{', '.join(free)} free" if free else "no sizes"


def _mlock_detail() -> str:
    left = limits.memlock_left()
    return "no limit" if left is None else f"{format_size(left[1])} of {format_size(left[0])} left"


def _features(bits: int) -> str:
    return ", ".join(name for name, bit in UFFD_FEATURES.items() if bits & bit)
