"""
What a measurement leaves behind: plain dataclasses that keep every sample.

A :class:`Run` is one ``realmem bench`` from start to end: facts about the host, and a list of
:class:`Result`, each one figure with all its samples, its unit, what it was measured on and
whether something about it is not what it seems (``emulated``, ``unverified``).  Where a peer
program was run beside ours, a :class:`PeerResult` keeps both.

``Run.from_json(run.to_json()) == run`` holds for every run.
"""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from realmem.bench import stats

if TYPE_CHECKING:
    from _typeshed import DataclassInstance
    from typing_extensions import Self

SCHEMA = "realmem-bench/1"

# What may be said against a figure; anything else is a typing mistake.
EMULATED = "emulated"           # nodes share one host node: remote costs what local does
UNVERIFIED = "unverified"       # the host would not say on which node the memory lies
STAMPS = (EMULATED, UNVERIFIED)

Param = str | int | float | bool
Value = TypeVar("Value", bound="DataclassInstance")


@dataclass(frozen=True)
class _Figure(ABC):
    """What a result and a peer's have alike: how they become JSON and come back."""

    @property
    @abstractmethod
    def summary(self) -> dict[str, float]:
        """The figures that tables show."""

    def to_json(self) -> dict[str, Any]:
        """Give a dict of JSON's types; ``summary`` is for readers that do no arithmetic."""
        data = {item.name: getattr(self, item.name) for item in fields(self)}
        plain = {k: list(v) if isinstance(v, tuple) else v for k, v in data.items()}
        return {**plain, "summary": self.summary} if self.summary else plain

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """
        Read what :meth:`to_json` wrote.

        :raises ValueError: a field is missing, unknown or of the wrong type.
        """
        return _read(cls, data, ignore=("summary",))


@dataclass(frozen=True)
class Result(_Figure):
    """
    One figure.

    :ivar bench: the bench that made it: ``"latency"``.
    :ivar metric: what was measured: ``"load"``, ``"triad"``, ``"alloc+free"``.
    :ivar unit: of the samples: ``"ns"``, ``"GB/s"`` (10**9 bytes a second).
    :ivar samples: every sample, in the order taken.
    :ivar cpu_node: host node whose CPUs ran it, or None where it does not matter.
    :ivar memory_node: host node whose memory was touched, or None.
    :ivar params: what else was fixed: sizes, order, page kind, threads.
    :ivar stamps: of STAMPS.
    :ivar higher_is_better: True for a bandwidth, False for a time.
    :ivar note: one line for people.
    """

    bench: str
    metric: str
    unit: str
    samples: tuple[float, ...]
    cpu_node: int | None = None
    memory_node: int | None = None
    params: Mapping[str, Param] = field(default_factory=dict)
    stamps: tuple[str, ...] = ()
    higher_is_better: bool = False
    note: str = ""

    def __post_init__(self) -> None:
        if not self.samples:
            raise ValueError(f"{self.bench} {self.metric}: a result without samples")
        if not all(math.isfinite(sample) for sample in self.samples):
            raise ValueError(f"{self.bench} {self.metric}: a sample is not a finite number")
        for stamp in self.stamps:
            if stamp not in STAMPS:
                raise ValueError(f"unknown stamp {stamp!r}, one of {', '.join(STAMPS)}")

    @property
    def min(self) -> float:
        """The smallest sample."""
        return min(self.samples)

    @property
    def median(self) -> float:
        """The middle sample."""
        return stats.median(self.samples)

    @property
    def p95(self) -> float:
        """The 95th percentile of the samples."""
        return stats.percentile(self.samples, 95)

    @property
    def best(self) -> float:
        """The sample that was disturbed least: the smallest time, the largest bandwidth."""
        return max(self.samples) if self.higher_is_better else min(self.samples)

    @property
    def key(self) -> tuple[Any, ...]:
        """What makes two results of two runs figures of the same thing."""
        return (
            self.bench,
            self.metric,
            self.unit,
            self.cpu_node,
            self.memory_node,
            tuple(sorted(self.params.items())),
        )

    @property
    def summary(self) -> dict[str, float]:
        """The figures that tables show."""
        return {"min": self.min, "median": self.median, "p95": self.p95}


@dataclass(frozen=True)
class PeerResult(_Figure):
    """
    One figure of ours beside a peer program's, measured in turns.

    :ivar bench: the bench that ran both.
    :ivar peer: the program: ``"multichase"``.
    :ivar metric: as in :class:`Result`.
    :ivar unit: of the samples of both.
    :ivar ours: one figure a round.
    :ivar theirs: one figure a round, the same rounds; empty when the peer is not present.
    :ivar params: what both were told.
    :ivar note: one line for people.
    """

    bench: str
    peer: str
    metric: str
    unit: str
    ours: tuple[float, ...] = ()
    theirs: tuple[float, ...] = ()
    params: Mapping[str, Param] = field(default_factory=dict)
    note: str = ""

    def __post_init__(self) -> None:
        if self.theirs and len(self.ours) != len(self.theirs):
            raise ValueError(f"{self.peer} {self.metric}: rounds of unequal number")
        if not all(0 < sample < math.inf for sample in (*self.ours, *self.theirs)):
            raise ValueError(f"{self.peer} {self.metric}: a sample is not a positive number")

    @property
    def present(self) -> bool:
        """Whether the peer was there and ran."""
        return bool(self.theirs)

    @property
    def ratios(self) -> tuple[float, ...]:
        """Ours over theirs, round by round."""
        return tuple(a / b for a, b in zip(self.ours, self.theirs, strict=False))

    @property
    def ratio(self) -> float:
        """The median of the ratios of the rounds."""
        return stats.median(self.ratios)

    @property
    def spread(self) -> float:
        """How far the peer's own rounds lie apart: ``max / min - 1``."""
        return stats.spread(self.theirs)

    @property
    def summary(self) -> dict[str, float]:
        """The figures that tables show; none for a peer that is not present."""
        return {"ratio": self.ratio, "spread": self.spread} if self.present else {}


@dataclass(frozen=True)
class Run:
    """
    One ``realmem bench``: its facts and its figures.

    :ivar host: facts about the machine underneath, see :func:`realmem.bench.facts.host_facts`.
    :ivar options: what was asked for.
    :ivar results: the figures.
    :ivar peers: figures beside peer programs.
    :ivar failures: why a bench ended early, by its name.
    :ivar seconds: how long the whole run took.
    """

    host: Mapping[str, Any]
    options: Mapping[str, Any] = field(default_factory=dict)
    results: tuple[Result, ...] = ()
    peers: tuple[PeerResult, ...] = ()
    failures: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Give a dict of JSON's types, with the name of its schema."""
        return {
            "schema": SCHEMA,
            "host": dict(self.host),
            "options": dict(self.options),
            "failures": dict(self.failures),
            "seconds": self.seconds,
            "results": [result.to_json() for result in self.results],
            "peers": [peer.to_json() for peer in self.peers],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Run:
        """
        Read what :meth:`to_json` wrote.

        :raises ValueError: not a run of this schema.
        """
        if not isinstance(data, Mapping) or data.get("schema") != SCHEMA:
            raise ValueError(f"not a {SCHEMA} file")
        plain = {name: value for name, value in data.items() if name != "schema"}
        for name, kind in (("results", Result), ("peers", PeerResult)):
            if not isinstance(plain.get(name), list):
                raise ValueError(f"{name}: not a list")
            plain[name] = tuple(kind.from_json(item) for item in plain[name])
        return _read(cls, plain)

    def save(self, path: Path) -> None:
        """Write the run as a JSON file."""
        path.write_text(json.dumps(self.to_json(), indent=1, allow_nan=False) + "\n")

    @classmethod
    def load(cls, path: Path) -> Run:
        """
        Read a JSON file that :meth:`save` wrote.

        :raises ValueError: the file holds something else.
        """
        try:
            return cls.from_json(json.loads(path.read_text()))
        except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as why:
            raise ValueError(f"not JSON: {why}") from None


def _read(cls: type[Value], data: Mapping[str, Any], ignore: tuple[str, ...] = ()) -> Value:
    """Build a dataclass from a JSON object; names and types are checked."""
    if not isinstance(data, Mapping):
        raise ValueError(f"{cls.__name__}: not an object")
    known = {item.name: item for item in fields(cls)}
    values: dict[str, Any] = {}
    for name, value in data.items():
        if name in ignore:
            continue
        if name not in known:
            raise ValueError(f"{cls.__name__}: unknown field {name!r}")
        values[name] = _checked(f"{cls.__name__}.{name}", str(known[name].type), value)
    try:
        return cls(**values)
    except (TypeError, OverflowError) as why:       # JSON's integers have no bounds
        raise ValueError(f"{cls.__name__}: {why}") from None


def _float(number: float) -> float:
    try:
        return float(number)
    except OverflowError:
        return math.inf             # which the figures refuse by their own names


def _checked(name: str, kind: str, value: Any) -> Any:
    """Check one value against the (textual) annotation of its field, and make lists tuples."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind in ("tuple[Result, ...]", "tuple[PeerResult, ...]"):
        good = True                             # made by Run.from_json
    elif kind.startswith("tuple"):
        good = isinstance(value, list) and all(
            isinstance(item, str) if kind.startswith("tuple[str") else
            isinstance(item, (int, float)) and not isinstance(item, bool)
            for item in value
        )
        if good:
            value = tuple(value if kind.startswith("tuple[str") else map(_float, value))
    elif kind.startswith("Mapping"):
        good = isinstance(value, Mapping)
        if good and kind == "Mapping[str, str]":
            good = all(isinstance(item, str) for item in value.values())
        if good and kind.endswith("Param]"):
            good = all(isinstance(item, (str, int, float)) for item in value.values())
    elif kind == "str":
        good = isinstance(value, str)
    elif kind == "bool":
        good = isinstance(value, bool)
    elif kind == "float":
        good = number
    else:
        good = value is None or (number and isinstance(value, int))
    if not good:
        raise ValueError(f"{name}: not a {kind}: {value!r}")
    return value
