"""The host's libnuma through py-libnuma: the library's own account of nodes."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from types import ModuleType

from realmem.errors import HostError


def load() -> ModuleType:
    """
    Import py-libnuma.

    :return: its module ``numa.info``.
    :raises HostError: libnuma.so.1 is not installed, or the kernel has no NUMA calls.
    """
    try:
        import numa.info
    except (AttributeError, OSError) as error:
        # Where the library is missing, py-libnuma looks its functions up in the interpreter.
        raise HostError(
            errno.ENOENT,
            "libnuma.so.1 is not installed: install the package libnuma1 "
            "(Debian, Ubuntu) or numactl-libs (Fedora, RHEL)",
        ) from error
    info: ModuleType = numa.info
    return info


def distances(nodes: Iterable[int]) -> dict[int, dict[int, int]]:
    """
    Give the distance between each two nodes; those that libnuma does not know are left out.

    :raises HostError: libnuma.so.1 is not installed.
    """
    info = load()
    ids = list(nodes)
    if not info.numa_available():
        return {a: {} for a in ids}
    table = {a: {b: int(info.numa_distance(a, b)) for b in ids} for a in ids}
    return {a: {b: d for b, d in row.items() if d > 0} for a, row in table.items()}
