"""
Resource limits and capabilities: what a process may have.

Compare mm/vma.c:may_expand_vm(), mm/mlock.c:can_do_mlock(), mm/mmap.c:mlock_future_ok().
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, MutableMapping, MutableSet
from typing import TYPE_CHECKING, Any

from realmem.arguments import as_int
from realmem.layout import PAGE_SHIFT, RLIM_INFINITY, parse_size
from realmem.mm.draft import DATA, LOCKED, TOTAL, Draft
from realmem.mm.vma import VM_LOCKED, is_data_mapping

if TYPE_CHECKING:
    from realmem.mm.address_space import MemoryMap

DEFAULTS = {
    "AS": RLIM_INFINITY,
    "DATA": RLIM_INFINITY,
    "STACK": 8 << 20,
    "MEMLOCK": 8 << 20,
}

# include/uapi/linux/capability.h, without the prefix
CAPABILITIES = frozenset(
    "CAP_" + name
    for name in """
    CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE
    NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO
    SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME
    SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG
    WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE
    """.split()
)


class Capabilities(MutableSet[str]):
    """
    ``p.capabilities``: names such as ``"CAP_IPC_LOCK"``.

    :param core: the kernel side, which asks for two of them at faults and charges.
    :raises ValueError: no such capability.
    """

    def __init__(self, core: Any, names: Iterable[str]) -> None:
        self._core = core
        self._names: frozenset[str] = frozenset()
        self.replace(names)

    def replace(self, names: Iterable[str]) -> None:
        """Have these and no others."""
        new = frozenset(names)
        for name in new - CAPABILITIES:
            raise ValueError(f"no capability {name!r}")
        self._core.set_capabilities("CAP_IPC_LOCK" in new, "CAP_SYS_ADMIN" in new)
        self._names = new

    def add(self, value: str) -> None:
        """Grant one."""
        self.replace(self._names | {value})

    def discard(self, value: str) -> None:
        """Take one away."""
        self.replace(self._names - {value})

    def clear(self) -> None:
        """Take all away."""
        self.replace(())

    def __contains__(self, value: object) -> bool:
        return value in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __repr__(self) -> str:
        return f"Capabilities({sorted(self._names)!r})"

    @classmethod
    def _from_iterable(cls, it: Iterable[Any]) -> set[Any]:
        return set(it)


class Limits(MutableMapping[str, int]):
    """
    ``p.rlimit``: bytes by name; soft and hard limit are one.  Takes sizes such as ``"8M"`` too.

    :param core: the kernel side, which is told of each (stacks grow there).
    :param values: where they start.
    """

    def __init__(self, core: Any, values: Mapping[str, int] | None = None) -> None:
        self._core = core
        self._values = dict(DEFAULTS if values is None else values)
        for which, value in self._values.items():
            core.set_limit(which, value)

    def __getitem__(self, which: str) -> int:
        return self._values[which]

    def __setitem__(self, which: str, value: int | str) -> None:
        if which not in self._values:
            raise KeyError(which)
        self._core.check_alive()
        what = f"rlimit[{which!r}]"
        number = as_int(
            parse_size(value, what) if isinstance(value, str) else value, what, 0, RLIM_INFINITY
        )
        self._core.set_limit(which, number)
        self._values[which] = number

    def __delitem__(self, which: str) -> None:
        raise TypeError("a limit is set to RLIM_INFINITY, not deleted")

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"Limits({self._values!r})"


def may_expand(plan: Draft, flags: int, pages: int) -> bool:
    """Whether RLIMIT_AS and RLIMIT_DATA allow a mapping of so many pages more."""
    limits = plan.mm.rlimit
    if plan.counter(TOTAL) + pages > limits["AS"] >> PAGE_SHIFT:
        return False
    return (
        not is_data_mapping(flags) or plan.counter(DATA) + pages <= limits["DATA"] >> PAGE_SHIFT
    )


def can_do_mlock(mm: MemoryMap) -> bool:
    """Whether the process may lock memory at all."""
    return mm.rlimit["MEMLOCK"] != 0 or mm.capable("CAP_IPC_LOCK")


def mlock_future_ok(plan: Draft, flags: int, length: int) -> bool:
    """Whether RLIMIT_MEMLOCK allows a mapping with these flags."""
    if not flags & VM_LOCKED or plan.mm.capable("CAP_IPC_LOCK"):
        return True
    pages = plan.counter(LOCKED) + (length >> PAGE_SHIFT)
    return pages <= plan.mm.rlimit["MEMLOCK"] >> PAGE_SHIFT
