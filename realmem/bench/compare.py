"""Two runs, figure by figure: how much moved, and whether that is more than noise."""

from __future__ import annotations

from dataclasses import dataclass

from realmem.bench import stats
from realmem.bench.facts import is_busy
from realmem.bench.results import Result, Run


@dataclass(frozen=True)
class Change:
    """
    One figure in two runs.

    :ivar old: the earlier figure.
    :ivar new: the later figure.
    :ivar ratio: new median over old median.
    :ivar band: the ratios that noise alone explains, see :func:`realmem.bench.stats.noise_band`.
    """

    old: Result
    new: Result
    ratio: float
    band: tuple[float, float]

    @property
    def verdict(self) -> str:
        """``"same"`` within the band, else ``"better"`` or ``"worse"``; ``"?"`` for one sample."""
        if min(len(self.old.samples), len(self.new.samples)) < 2:
            return "?"                      # a single sample says nothing about its noise
        if self.band[0] <= self.ratio <= self.band[1]:
            return "same"
        return "better" if (self.ratio > 1) == self.new.higher_is_better else "worse"


@dataclass(frozen=True)
class Comparison:
    """
    Two runs side by side.

    :ivar changes: the figures that both have, in the order of the later run.
    :ivar only_old: figures that the later run lacks, though it ran their bench.
    :ivar only_new: figures that the earlier run lacks.
    :ivar warnings: why the two may not be comparable at all.
    """

    changes: tuple[Change, ...]
    only_old: tuple[Result, ...]
    only_new: tuple[Result, ...]
    warnings: tuple[str, ...]


def compare(old: Run, new: Run) -> Comparison:
    """
    Put the figures of two runs side by side.

    :param old: the earlier run.
    :param new: the later run.
    :return: ratios with noise bands, and what could not be compared.
    """
    before = {result.key: result for result in old.results}
    changes = []
    only_new = []
    for result in new.results:
        match = before.pop(result.key, None)
        if match is None:
            only_new.append(result)
        elif min(*match.samples, *result.samples) <= 0:
            continue                        # a difference that came out below zero has no ratio
        else:
            changes.append(
                Change(
                    match,
                    result,
                    result.median / match.median,
                    stats.noise_band(match.samples, result.samples),
                )
            )
    measured = {result.bench for result in new.results}
    only_old = tuple(result for result in before.values() if result.bench in measured)
    return Comparison(tuple(changes), only_old, tuple(only_new), _warnings(old, new))


def _warnings(old: Run, new: Run) -> tuple[str, ...]:
    said = []
    for fact in ("cpu_model", "kernel", "machine", "clock_source", "thp_enabled"):
        a, b = old.host.get(fact), new.host.get(fact)
        if a != b:
            said.append(f"{fact} differs: {a} then, {b} now")
    for run, when in ((old, "then"), (new, "now")):
        if is_busy(run.host):
            load = run.host["load_average"][0]
            said.append(f"the host was busy {when}: load average {load:.1f}")
    stamps_old = {stamp for result in old.results for stamp in result.stamps}
    stamps_new = {stamp for result in new.results for stamp in result.stamps}
    if stamps_old != stamps_new:
        said.append(
            f"stamps differ: {', '.join(sorted(stamps_old)) or 'none'} then, "
            f"{', '.join(sorted(stamps_new)) or 'none'} now"
        )
    return tuple(said)
