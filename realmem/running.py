"""Where a process runs: which node its software accesses come from."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from realmem import host
from realmem._core.faults import Ending, check_pending
from realmem.arguments import as_int
from realmem.errors import HostError

if TYPE_CHECKING:
    from typing import Any

    from realmem.machine import Machine
    from realmem.mm.address_space import MemoryMap
    from realmem.process import ProcessTable


@dataclass(eq=False)
class Place:
    """
    Where a process runs: from the start, or for as long as a thread is in a block of p.on().

    :ivar node: None is the node of whichever CPU calls.
    :ivar allowed: the CPUs that the thread might use before.
    """

    node: int | None
    allowed: frozenset[int] = frozenset()


class RunsSomewhere:
    """The part of Process that places it on a node."""

    # Its own, then those of blocks that threads are in, as they began: the last one counts.
    _places: list[Place]

    if TYPE_CHECKING:
        mm: MemoryMap
        _table: ProcessTable

    @property
    def machine(self) -> Machine:
        """The machine that it runs on."""
        machine = self._table.machine()
        if machine is None:
            raise ValueError("this machine is closed")
        return machine

    @property
    def _node(self) -> int | None:
        return self._places[-1].node

    def run_on(self, node: int | None = None, cpu: int | None = None) -> None:
        """
        Say where the process runs: its software accesses and calls take memory as there.

        Children inherit it.  Raw accesses use the CPU that they really happen on.

        :param node: of the machine; one without CPUs will do, since nothing really runs there.
        :param cpu: a host CPU, which stands for its node.  Without either, the process runs
            where the calling thread does.
        :raises ValueError: there is no such node or CPU, or the CPU is another node's.
        """
        self.mm.core.check_alive()
        self._places[-1].node = self._node_to_run_on(node, cpu)
        self.settle()

    def settle(self) -> None:
        """Have the kernel side follow the last place, though threads may enter and leave some."""
        while True:
            node = self._node
            self.mm.core.run_on(-1 if node is None else node)
            if node == self._node:
                break

    def on(self, node: int | None = None, cpu: int | None = None) -> On:
        """
        Give a context manager that runs the process on a node, and pins the calling thread there.

        Raw accesses of the thread then come from the same node as the software ones, unless the
        node is emulated and has no CPU of its own: the thread runs on one of the host node's.

        :param node: see run_on().
        :param cpu: the host CPU to pin the thread to; None chooses one of the node's.
        :return: a context manager that gives the CPU; at its end, all is as it was.
        :raises ValueError: see run_on(); or neither is given.
        :raises HostError: on entry: the thread may not run on any such CPU.
        :raises RuntimeError: on entry, before it was left: each block takes one of its own.
        """
        self.mm.core.check_alive()
        if node is None and cpu is None:
            raise ValueError("say which node or CPU")
        return On(self, self._node_to_run_on(node, cpu), cpu)

    def _node_to_run_on(self, node: int | None, cpu: int | None) -> int | None:
        nodes = self.machine.nodes
        if node is not None and not 0 <= as_int(node, "node") < len(nodes):
            raise ValueError(f"no node {node}: this machine has {len(nodes)}")
        if cpu is None:
            return node
        of_cpu = self.machine._cpu_to_node
        if as_int(cpu, "cpu") not in of_cpu:
            raise ValueError(f"this host has no CPU {cpu}")
        if node not in (None, of_cpu[cpu]):
            raise ValueError(f"CPU {cpu} belongs to node {of_cpu[cpu]}, not {node}")
        return of_cpu[cpu]


class On(Ending):
    """
    A process and the calling thread on one node, until the end of a ``with`` block.

    No signal comes between: entering puts all back if it is interrupted, from its last call on
    nothing interrupts it, and the interpreter enters the block before it looks for signals.
    """

    def __init__(self, process: Any, node: int | None, cpu: int | None) -> None:
        self._process = process
        self._node = node
        self._cpu = cpu
        self._place: Place | None = None        # while it is entered

    def __enter__(self) -> int:
        place = Place(self._node, frozenset(os.sched_getaffinity(0)))
        if self._place is not None:
            raise RuntimeError("this p.on() is in use: each block takes one of its own")
        self._place = place
        try:
            cpu = self._pin()
            self._process._places.append(place)
            self._process.settle()
            return cpu
        except BaseException:
            self.__exit__()
            raise

    def _pin(self) -> int:
        """Bind the thread to one CPU, rather to one that it may use now."""
        candidates = self._candidates()
        try:
            os.sched_setaffinity(0, (candidates & os.sched_getaffinity(0)) or candidates)
            cpu = min(os.sched_getaffinity(0))      # the cpuset may have left some out
            os.sched_setaffinity(0, {cpu})
        except OSError as why:
            raise HostError(
                errno.EINVAL,
                f"this thread may not run on any CPU of node {self._node} "
                f"({sorted(candidates) or 'it has none'}): see its cpuset",
            ) from why
        return cpu

    def _candidates(self) -> set[int]:
        if self._cpu is not None:
            return {self._cpu}
        node = self._process.machine.nodes[self._node]
        return set(node.cpus or host.cpus_of(node.host_node))

    def leave(self) -> None:
        """Put all back; what was done of it already may be done again, or all of it."""
        place = self._place
        if place is None:
            return
        os.sched_setaffinity(0, place.allowed)
        with suppress(ValueError):
            self._process._places.remove(place)
        try:
            check_pending()             # a forbidden access in the block; it would keep us here
        finally:
            with suppress(ProcessLookupError, ValueError):  # exited, or its machine was closed
                self._process.settle()
        self._place = None
