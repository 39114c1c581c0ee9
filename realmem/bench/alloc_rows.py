"""Rows of the allocation bench: what is asked of whom, and the threads that ask together."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from realmem.bench.pin import run_pinned
from realmem.bench.results import Param
from realmem.layout import GFP_KERNEL

if TYPE_CHECKING:
    from realmem.machine import Machine
    from realmem.node import Node

LLFREE_NAMES = ("libllfree.so", "llfree*.so", "libllfree*.so", "libllc.so")


@dataclass
class Row:
    """
    One row of a session.

    :ivar allocator: a compiled allocator under test.
    :ivar pattern: a key of ``realmem._bench.alloc.PATTERNS``.
    :ivar order: log2 of the pages of a block.
    :ivar threads: how many threads run it at once.
    :ivar held: blocks alive at once, a thread.
    :ivar turns: repetitions in one sample.
    :ivar shuffle: the order in which ``"random"`` frees.
    :ivar label: what tells the row from the others in results.
    :ivar nodes: the CPUs' node and the memory's.
    :ivar get_ns: a sample a round: one allocation; for ``"pair"`` its free is in it.
    :ivar put_ns: a sample a round: one free; empty for ``"pair"``.
    """

    allocator: Any
    pattern: str
    order: int
    threads: int = 1
    held: int = 1
    turns: int = 1
    shuffle: tuple[int, ...] = ()
    label: dict[str, Param] = field(default_factory=dict)
    nodes: tuple[Node, Node] | None = None
    get_ns: list[float] = field(default_factory=list)
    put_ns: list[float] = field(default_factory=list)

    @property
    def pair_ns(self) -> list[float]:
        """One allocation and its free, a sample a round."""
        if not self.put_ns:
            return self.get_ns
        return [get + put for get, put in zip(self.get_ns, self.put_ns, strict=True)]


class Rows:
    """
    A session: rows measured in turns by pinned threads.

    :param cpus: one host CPU for each thread.
    :param rounds: samples a row.
    """

    def __init__(self, cpus: Sequence[int], rounds: int) -> None:
        from realmem._bench.alloc import Session

        self._cpus = list(cpus)
        self._session = Session(len(self._cpus), rounds)
        self.rows: list[Row] = []

    @property
    def threads(self) -> int:
        """How many threads there are."""
        return len(self._cpus)

    def realmem(self, machine: Machine, nid: int) -> Any:
        """Give a machine's page allocator, asked for memory of node ``nid``."""
        from realmem._bench.target import RealmemAllocator

        return RealmemAllocator(machine._allocator, nid, int(GFP_KERNEL))

    def llfree(self, path: Path, frames: int) -> Any:
        """
        Give LLFree over as many frames, one reservation a thread.

        :raises OSError: its library can't be loaded.
        :raises ValueError: its interface is another one.
        """
        from realmem._bench.llfree import LLFreeAllocator

        return LLFreeAllocator(path, frames, self.threads)

    def add(self, row: Row) -> None:
        """Add a row."""
        self._session.add(
            row.allocator,
            row.pattern,
            row.order,
            row.threads,
            row.held,
            row.turns,
            row.shuffle or None,
        )
        self.rows.append(row)

    def measure(self) -> None:
        """
        Run all rounds and fill in the rows' samples.

        :raises MemoryError: an allocator ran out.
        :raises OSError: a CPU is not allowed.
        """
        self._session.prepare()
        run_pinned(self._session, self._cpus)
        for number, row in enumerate(self.rows):
            row.get_ns, row.put_ns = self._session.samples(number)

    @contextmanager
    def aged(self, allocator: Any, pages: int, seed: int, wanted: bool = True) -> Iterator[None]:
        """
        Give an allocator's free lists the shape of long use.

        Takes ``pages`` pages one by one and gives a random half of them back, so that many
        small blocks and few large ones are free; the rest of its memory stays whole.

        :param allocator: from :meth:`realmem` or :meth:`llfree`.
        :param pages: how many to take.
        :param seed: of the choice.
        :param wanted: False does nothing.
        """
        if not wanted:
            yield
            return
        from realmem._bench.hold import Hold

        hold = Hold(allocator)
        keep = bytes(byte & 1 for byte in random.Random(seed).randbytes(pages))
        hold.age(pages, keep)
        try:
            yield
        finally:
            hold.release()


def llfree_path(directory: Path | None) -> Path | None:
    """
    Find LLFree's shared library.

    :param directory: ``REALMEM_PEERS``, or None.
    :return: the first file of LLFREE_NAMES in it, or None.
    """
    if directory is None:
        return None
    for name in LLFREE_NAMES:
        for path in sorted(Path(directory).glob(name)):
            if path.is_file():
                return path
    return None
