"""
Resource limits and capabilities: what a process may have.

Compare mm/vma.c:may_expand_vm(), mm/mlock.c:can_do_mlock(), mm/mmap.c:mlock_future_ok().
"""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from typing import TYPE_CHECKING, Any

from realmem.arguments import as_int
from realmem.layout import PAGE_SHIFT, RLIM_INFINITY
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

# Those that memory management asks for; uid 0 has them, others do not.
CAPABILITIES = frozenset(
    {"CAP_IPC_LOCK", "CAP_SYS_ADMIN", "CAP_SYS_NICE", "CAP_SYS_RAWIO", "CAP_SYS_RESOURCE"}
)


class Limits(MutableMapping[str, int]):
    """
    ``p.rlimit``: bytes by name; soft and hard limit are one.

    :param core: the kernel side, which is told of each (stacks grow there).
    :param values: where they start.
    """

    def __init__(self, core: Any, values: dict[str, int] | None = None) -> None:
        self._core = core
        self._values = dict(DEFAULTS if values is None else values)
        for which, value in self._values.items():
            core.set_limit(which, value)

    def __getitem__(self, which: str) -> int:
        return self._values[which]

    def __setitem__(self, which: str, value: int) -> None:
        if which not in self._values:
            raise KeyError(which)
        self._core.check_alive()
        number = as_int(value, f"rlimit[{which!r}]", 0, RLIM_INFINITY)
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
