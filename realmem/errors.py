"""The exceptions that realmem raises; one class for each kind of refusal."""

from __future__ import annotations

from collections.abc import Callable

from realmem.layout import SEGV_MAPERR


class OutOfMemory(MemoryError):
    """
    An allocation or a fault found no frame.

    ``str()`` is a report in the manner of ``mm/show_mem.c:show_free_areas``, made when first
    asked for by the callable that is given as ``report``.

    :ivar order: log2 of the number of pages asked for.
    :ivar gfp: the flags of the request.
    :ivar node: the node id asked for, or None for the caller's own.
    """

    def __init__(
        self,
        message: str = "out of memory",
        *,
        order: int = 0,
        gfp: int = 0,
        node: int | None = None,
        report: Callable[[], str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.order = order
        self.gfp = gfp
        self.node = node
        self._report = report

    def __str__(self) -> str:
        if self._report is not None:
            report, self._report = self._report, None
            try:
                self.message = f"{self.message}\n{report()}"
            except ValueError as error:         # an exception may outlive its machine
                self.message = f"{self.message}\n(no report: {error})"
        return self.message


class SegmentationFault(Exception):
    """
    A simulated process touched what it may not.

    :ivar address: the process's own address.
    :ivar access: ``"read"``, ``"write"`` or ``"exec"``.
    :ivar code: ``SEGV_MAPERR`` (1, nothing is mapped there) or ``SEGV_ACCERR`` (2, not so).
    :ivar pid: the simulated process.
    :ivar done: bytes transferred before it.
    """

    def __init__(
        self, address: int, access: str, code: int, pid: int = 0, done: int = 0
    ) -> None:
        why = "address not mapped" if code == SEGV_MAPERR else "invalid permissions"
        super().__init__(f"pid {pid}: {access} of {address:#x}: {why}")
        self.address = address
        self.access = access
        self.code = code
        self.pid = pid
        self.done = done


class BusError(Exception):
    """
    An access that what is mapped cannot answer: past its end, or its I/O failed.

    :ivar address: the process's own address.
    :ivar pid: the simulated process.
    :ivar done: bytes transferred before it.
    """

    def __init__(self, address: int, pid: int = 0, done: int = 0) -> None:
        super().__init__(f"pid {pid}: {address:#x}: nothing is behind this part of the mapping")
        self.address = address
        self.pid = pid
        self.done = done


class AllocatorError(Exception):
    """Misuse of an allocator, or corruption found by it: the message says which object."""


class InvariantError(Exception):
    """``machine.check()`` found the books wrong: names the frame, list or counter."""


class AtomicContextError(Exception):
    """Something that may sleep was called inside ``machine.atomic_context()``."""


class HostError(OSError):
    """The host refuses; the message says what to change."""
