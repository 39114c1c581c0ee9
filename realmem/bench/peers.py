"""
Other programs that measure the same, run in turns with ours.

They are neither shipped nor built here: whoever wants the comparison builds them and names
their folder in ``REALMEM_PEERS``.  Looked for are ``multichase`` (github.com/google/multichase),
STREAM built with ``-O3 -fopenmp`` as ``stream``, and ``stream_huge``, the same with its arrays
on huge pages.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from realmem.bench.pin import pinned_to
from realmem.errors import HostError

Figure = TypeVar("Figure")

_TIMEOUT_S = 300


def find(folder: Path | None, name: str) -> Path | None:
    """Give the program of this name in the folder of peers, if it is there and can be run."""
    if folder is None:
        return None
    path = folder / name
    return path if path.is_file() and os.access(path, os.X_OK) else None


def run_program(
    argv: Sequence[str], cpus: Sequence[int], env: Mapping[str, str] | None = None
) -> str:
    """
    Run a peer on some CPUs.

    :param argv: program and arguments.
    :param cpus: the only ones it may use.
    :param env: added to this process's own.
    :return: what it printed.
    :raises HostError: it failed, or took too long.
    """
    name = Path(argv[0]).name
    try:
        with pinned_to(cpus):               # inherited by the child
            done = subprocess.run(
                list(argv),
                env={**os.environ, **(env or {})},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_TIMEOUT_S,
            )
    except subprocess.TimeoutExpired:
        raise HostError(f"{name} did not end within {_TIMEOUT_S} s") from None
    except OSError as why:
        raise HostError(f"cannot run {name}: {why.strerror}") from None
    if done.returncode:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:]
        raise HostError(f"{name} failed ({done.returncode}): {''.join(last)}")
    return done.stdout


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
