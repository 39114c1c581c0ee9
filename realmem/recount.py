"""Machine(debug=2): everything is counted again after each call that a process makes."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from realmem.advice import AdviceCalls
from realmem.errors import BusError, SegmentationFault
from realmem.process import Process
from realmem.syscalls import SystemCalls

ACCESSES = "read", "write", "touch", "fill", "access"
# What a refusal leaves done in part is counted as well.
REFUSALS = OSError, MemoryError, SegmentationFault, BusError


class RecountedProcess(Process):
    """A process whose system calls and software accesses are each followed by machine.check()."""

    def _recount(self) -> None:
        machine = self._table.machine()
        if machine is not None:
            machine.check()


def _recounted(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(self: RecountedProcess, *args: Any, **kwargs: Any) -> Any:
        try:
            result = method(self, *args, **kwargs)
        except REFUSALS:
            self._recount()
            raise
        self._recount()
        return result

    return call


def calls() -> list[str]:
    """Name the methods of a process that may change what is counted."""
    families = [vars(family).items() for family in (SystemCalls, AdviceCalls)]
    made = [name for family in families for name, method in family
            if inspect.isfunction(method) and not name.startswith("_")]  # fmt: skip
    return [*made, "fork", "exit", "wait", *ACCESSES]


for _name in calls():
    setattr(RecountedProcess, _name, _recounted(getattr(Process, _name)))
