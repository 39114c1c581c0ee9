"""
Other programs that measure the same, run in turns with ours.

They are neither shipped nor built here: whoever wants the comparison builds them and names
their folder in ``REALMEM_PEERS``.  Looked for are ``multichase`` (github.com/google/multichase)
and every ``stream*``: STREAM built with ``-O3``, with ``-fopenmp`` for several threads.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from realmem.bench.pin import pinned_to
from realmem.errors import HostError
from realmem.host.sysfs import read_text

Figure = TypeVar("Figure")

_TIMEOUT_S = 300
_WATCH_S = 0.02


def find(folder: Path | None, name: str) -> Path | None:
    """Give the program of this name in the folder of peers, if it is there and can be run."""
    if folder is None:
        return None
    path = folder / name
    return path if path.is_file() and os.access(path, os.X_OK) else None


def find_all(folder: Path | None, pattern: str) -> list[Path]:
    """Give the programs whose names match a pattern, by name."""
    paths = sorted(folder.glob(pattern)) if folder is not None else []
    return [path for path in paths if find(folder, path.name)]


def run_program(
    argv: Sequence[str],
    cpus: Sequence[int],
    env: Mapping[str, str] | None = None,
    watch: Callable[[int], None] | None = None,
) -> str:
    """
    Run a peer on some CPUs.

    :param argv: program and arguments.
    :param cpus: the only ones it may use.
    :param env: added to this process's own.
    :param watch: called with its pid every few milliseconds while it runs.
    :return: what it printed.
    :raises HostError: it failed, or took too long.
    """
    name = Path(argv[0]).name
    try:
        with pinned_to(cpus):               # inherited by the child
            child = subprocess.Popen(
                list(argv),
                env={**os.environ, **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
    except OSError as why:
        raise HostError(f"cannot run {name}: {why.strerror}") from None
    with child:
        out, err = _outcome(child, name, watch)
    if child.returncode:
        last = (err or out).strip().splitlines()[-1:]
        raise HostError(f"{name} failed ({child.returncode}): {''.join(last)}")
    return out


def _outcome(
    child: subprocess.Popen[str], name: str, watch: Callable[[int], None] | None
) -> tuple[str, str]:
    """Wait for a child's output; an exception here ends it."""
    deadline = time.monotonic() + _TIMEOUT_S
    while True:
        try:
            return child.communicate(timeout=_WATCH_S if watch else _TIMEOUT_S)
        except subprocess.TimeoutExpired:
            if time.monotonic() >= deadline:
                child.kill()
                raise HostError(f"{name} did not end within {_TIMEOUT_S} s") from None
            if watch:
                watch(child.pid)
        except BaseException:
            child.kill()
            raise


def anon_huge_bytes(pid: int) -> int:
    """Count what huge pages map of a process's private memory; 0 once it has gone."""
    rollup = read_text(Path(f"/proc/{pid}/smaps_rollup")) or ""
    return sum(
        int(line.split()[1]) * 1024
        for line in rollup.splitlines()
        if line.startswith("AnonHugePages:")
    )


def in_turns(
    rounds: int, ours: Callable[[], Figure], theirs: Callable[[], Figure]
) -> tuple[tuple[Figure, ...], tuple[Figure, ...]]:
    """
    Measure both in each round, each of them first in every other round.

    :return: our figures and theirs, round by round.
    """
    pairs = []
    for turn in range(rounds):
        if turn % 2:
            other = theirs()
            pairs.append((ours(), other))
        else:
            own = ours()
            pairs.append((own, theirs()))
    return tuple(own for own, _ in pairs), tuple(other for _, other in pairs)


def parse_multichase(text: str) -> float:
    """
    Read multichase's output: its last line is nanoseconds a load.

    :raises HostError: it is not.
    """
    lines = text.split()
    try:
        value = float(lines[-1])
    except (IndexError, ValueError):
        raise HostError(f"multichase printed no latency: {text.strip()[-60:]!r}") from None
    if not 0 < value < float("inf"):
        raise HostError(f"multichase printed no latency: {lines[-1]!r}")
    return value


@dataclass(frozen=True)
class StreamOutput:
    """
    What STREAM says of itself.

    :ivar elements: doubles in each of its three arrays.
    :ivar passes: how often each kernel ran; the first is not counted.
    :ivar threads: that it ran with.
    :ivar rates: GB/s of the best pass by kernel: ``copy``, ``scale``, ``add``, ``triad``.
    """

    elements: int
    passes: int
    threads: int
    rates: Mapping[str, float]


def parse_stream(text: str) -> StreamOutput:
    """
    Read STREAM's output.

    :raises HostError: something is missing, or it found its own results wrong.
    """
    elements = re.search(r"Array size = (\d+)", text)
    passes = re.search(r"executed (\d+) times", text)
    threads = re.search(r"Threads counted = (\d+)", text)
    rates = {
        name.lower(): float(rate) / 1000
        for name, rate in re.findall(r"^(Copy|Scale|Add|Triad):\s+([\d.]+)", text, re.MULTILINE)
    }
    if not (elements and passes) or len(rates) != 4:
        raise HostError(f"not STREAM's output: {text.strip()[-60:]!r}")
    if "Failed Validation" in text:
        raise HostError("STREAM found its own results wrong")
    return StreamOutput(
        int(elements[1]), int(passes[1]), int(threads[1]) if threads else 1, rates
    )
