"""Resource limits and capabilities: what a process may have."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from typing import Any

from realmem.arguments import as_int
from realmem.layout import RLIM_INFINITY

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
