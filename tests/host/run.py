"""
Run episodes: some hundred random steps each, from fresh processes on.

Worlds live in forked children of this process, which makes none itself: a world that dies takes
only its child along, and the steps it took up to then are in a file.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, Pipe
from pathlib import Path

from host.compare import Divergence, Pair, Parted, replay
from host.generate import SLOTS, Generator
from host.host_world import HostWorld
from host.ops import BASE, HEAP_DISTANCE, Answer, Op

EPISODE = 400


@dataclass
class Outcome:
    """
    What a run came to.

    :ivar steps: taken.
    :ivar answers: (name, label) to how often.
    :ivar maps: how many mmaps there were, and how many of them at no fixed address.
    :ivar ops: the steps of the episode that failed.
    :ivar divergence: how it failed.
    """

    steps: int = 0
    answers: Counter[tuple[str, str]] = field(default_factory=Counter)
    maps: Counter[str] = field(default_factory=Counter)
    ops: list[Op] | None = None
    divergence: Divergence | None = None

    def add(self, other: Outcome) -> None:
        """Add what another came to."""
        self.steps += other.steps
        self.answers.update(other.answers)
        self.maps.update(other.maps)


class Worlds:
    """
    Makes pairs of worlds: the host's is kept, the other one is new each time.

    :param twice: both are the host's.
    :param without: what the generator leaves out.
    :param options: of the machine.
    :param folder: where the worlds' files are to lie.
    """

    def __init__(self, twice: bool = False, without: frozenset[str] = frozenset(),
                 options: dict[str, object] | None = None, folder: str | None = None) -> None:
        self._twice = twice
        self._options = options or {}
        self._folder = folder
        self._host: HostWorld | None = None
        self._other: HostWorld | None = None
        self.without = without
        self.heap = BASE - HEAP_DISTANCE

    @contextlib.contextmanager
    def pair(self) -> Iterator[Pair]:
        """Give a pair that has no processes yet."""
        if self._twice:
            self._host = self._host or HostWorld(HEAP_DISTANCE, folder=self._folder)
            self._other = self._other or HostWorld(HEAP_DISTANCE, folder=self._folder)
            yield Pair(self._host, self._other)
            return
        from host.real_world import RealWorld

        world = RealWorld(folder=self._folder, **self._options)
        try:
            if self._host is None:
                self._host = HostWorld(world.distance, folder=self._folder)
            self.heap = BASE - world.distance
            if not self._host.names:
                self.without |= {"names"}
            if not self._host.may_set_capabilities:
                self.without |= {"capability"}
            yield Pair(self._host, world)
        finally:
            with contextlib.suppress(Exception):
                self._host.reset() if self._host else None
            world.close()


def episode(worlds: Worlds, seed: int, steps: int, note: Callable[[Op], None]) -> Outcome:
    """Take random steps until they part."""
    outcome, ops = Outcome(), []
    with worlds.pair() as pair:
        pair.reset()
        generator = Generator(seed, worlds.without)
        begin = generator.start(worlds.heap)
        try:
            for step in range(steps):
                op = begin[step] if step < len(begin) else generator.next(pair)
                ops.append(op)
                note(op)
                answer = pair.step(op)
                outcome.steps += 1
                if op.name == "mmap" and answer.kind == "ok":
                    fixed = int(str(op.args[3])) & 0x100010
                    outcome.maps["fixed" if fixed else "not fixed"] += 1
            pair.compare_all()
            pair.sync()
            pair.reset()
        except Parted as parted:
            outcome.divergence = Divergence(len(ops) - 1, parted.what, parted.left, parted.right)
            outcome.ops = ops
        except Exception:
            outcome.divergence = Divergence(len(ops) - 1, "an exception", "",
                                            traceback.format_exc())
            outcome.ops = ops
        outcome.answers = pair.answers
    return outcome


def _in_child(work: Callable[[Connection], None]) -> tuple[int, Connection]:
    """Fork; the child does the work with one end of a pipe and is gone."""
    ours, theirs = Pipe()
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        theirs.close()
        return pid, ours
    try:
        ours.close()
        work(theirs)
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def _end(pid: int) -> str:
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    return f"it died of {signal.Signals(-code).name}" if code < 0 else f"it exited with {code}"


def run(worlds: Worlds, seed: int, steps: int, jobs: int = 1, each: int = EPISODE,
        tell: Callable[[str], None] = lambda text: None) -> Outcome:
    """Take so many random steps in episodes; the first that fails ends it."""
    total = Outcome()
    episodes = max(1, -(-steps // each))
    jobs = min(jobs, episodes)
    cpus = sorted(os.sched_getaffinity(0))
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="realmem-host-") as folder:
        children: list[tuple[int, Connection, Path]] = []
        for job in range(jobs):
            log = Path(folder, f"steps-{job}")

            def work(pipe: Connection, job: int = job, log: Path = log) -> None:
                # A driver and who talks to it take turns: on one CPU they need not be woken.
                os.sched_setaffinity(0, {cpus[(job + os.getpid()) % len(cpus) if jobs == 1
                                              else job % len(cpus)]})
                for number in range(job, episodes, jobs):
                    with log.open("wb", buffering=0) as file:
                        done = episode(worlds, seed * 1_000_000 + number, each,
                                       lambda op, file=file: file.write(pickle.dumps(op)))
                    pipe.send(done)
                    if done.divergence is not None:
                        return
                pipe.send(None)

            children.append((*_in_child(work), log))
        while children and total.divergence is None:
            for child in list(children):
                pid, pipe, log = child
                if not pipe.poll(0.05):
                    continue
                try:
                    done = pipe.recv()
                except EOFError:
                    ops = _logged(log)
                    total.ops = ops
                    total.divergence = Divergence(len(ops) - 1, "a crash", "", _end(pid))
                    children.remove(child)
                    break
                if done is None:
                    _end(pid)
                    children.remove(child)
                    continue
                total.add(done)
                if done.divergence is not None:
                    total.ops, total.divergence = done.ops, done.divergence
                    _end(pid)
                    children.remove(child)
                    break
                rate = total.steps / (time.monotonic() - begin)
                tell(f"{total.steps} steps, {rate:.0f} a second")
        for pid, _, _ in children:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    return total


def _logged(log: Path) -> list[Op]:
    ops = []
    with log.open("rb") as file, contextlib.suppress(EOFError):
        while True:
            ops.append(pickle.load(file))
    return ops


class Replayer:
    """Replays lists of steps in a child, which is made again when it dies."""

    def __init__(self, worlds: Worlds) -> None:
        self._worlds = worlds
        self._child: tuple[int, Connection] | None = None

    def __call__(self, ops: list[Op]) -> Divergence | None:
        """Take the steps; say how they part, if they do."""
        if self._child is None:
            self._child = _in_child(self._work)
        pid, pipe = self._child
        try:
            pipe.send(ops)
            return pipe.recv()                                           # type: ignore[no-any-return]
        except (EOFError, BrokenPipeError, ConnectionResetError):
            self._child = None
            return Divergence(len(ops) - 1, "a crash", "", _end(pid))

    def answers(self, ops: list[Op]) -> list[tuple[Op, Answer]]:
        """Give the steps that can be taken with the host's answers."""
        found: list[tuple[Op, Answer]] = []

        def work(pipe: Connection) -> None:
            with self._worlds.pair() as pair:
                alone = Pair(pair.left, pair.left)
                alone.reset()
                for op in ops:
                    if alone.fits(op):
                        pipe.send((op, alone.step_left(op)))
            pipe.send(None)

        pid, pipe = _in_child(work)
        with contextlib.suppress(EOFError):
            while (pair := pipe.recv()) is not None:
                found.append(pair)
        _end(pid)
        return found

    def close(self) -> None:
        """End the child."""
        if self._child is not None:
            os.kill(self._child[0], signal.SIGKILL)
            os.waitpid(self._child[0], 0)
            self._child = None

    def _work(self, pipe: Connection) -> None:
        while True:
            ops = pipe.recv()
            with self._worlds.pair() as pair:
                try:
                    found = replay(pair, ops)
                    if found is None:
                        pair.reset()
                except Exception:
                    found = Divergence(len(ops) - 1, "an exception", "", traceback.format_exc())
            pipe.send(found)


__all__ = ["EPISODE", "SLOTS", "Outcome", "Replayer", "Worlds", "run"]
