"""Where ours stands among several peers: beside the fastest of them, row by row."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from realmem.bench.results import PeerResult
from realmem.bench.stats import median


@dataclass(frozen=True)
class Standing:
    """
    The rows of one metric (and pattern, where rows have one), beside the fastest peer of each.

    :ivar what: metric and pattern, for people.
    :ivar rows: how many rows there are.
    :ivar mean: geometric mean of ours over the fastest peer's, by medians.
    :ivar worst: the largest such ratio.
    :ivar mean_of_minima: as mean, by each row's smallest samples.
    :ivar worst_of_minima: as worst.
    """

    what: str
    rows: int
    mean: float
    worst: float
    mean_of_minima: float
    worst_of_minima: float


def standings(peers: Sequence[PeerResult]) -> list[Standing]:
    """
    Put ours beside the fastest peer of each row.

    :param peers: results in any order; those of a row differ by their peer only.
    :return: one for each metric and pattern that at least two peers and two rows stand for;
        in the order of the results.
    """
    groups: dict[str, dict[tuple[object, ...], list[PeerResult]]] = {}
    for peer in peers:
        if peer.present and peer.unit == "ns":
            what = f"{peer.metric} {peer.params.get('pattern', '')}".strip()
            row = (peer.bench, *peer.params.items())
            groups.setdefault(what, {}).setdefault(row, []).append(peer)
    found = []
    for what, rows in groups.items():
        if len(rows) < 2 or max(map(len, rows.values())) < 2:
            continue
        by_median = [_ratio(row, median) for row in rows.values()]
        by_min = [_ratio(row, min) for row in rows.values()]
        found.append(
            Standing(
                what, len(rows), _mean(by_median), max(by_median), _mean(by_min), max(by_min)
            )
        )
    return found


def _ratio(row: Sequence[PeerResult], figure: Callable[[Sequence[float]], float]) -> float:
    return figure(row[0].ours) / min(figure(peer.theirs) for peer in row)


def _mean(ratios: Sequence[float]) -> float:
    return math.exp(math.fsum(map(math.log, ratios)) / len(ratios))
