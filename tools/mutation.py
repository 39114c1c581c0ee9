"""What a mutant is, and a suite of them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """
    One change.

    :ivar name: what is broken.
    :ivar file: source, below cython/realmem; one in Python, below realmem.
    :ivar old: text that stands there once.
    :ivar new: what takes its place.
    :ivar modules: what has to be compiled, if not the source itself.
    """

    name: str
    file: str
    old: str
    new: str
    modules: tuple[str, ...] = ()


@dataclass(frozen=True)
class Suite:
    """
    Mutants that the same tests are to notice.

    :ivar tests: what pytest is told to run, what notices most first.
    :ivar mutants: each by itself.
    :ivar fast: names of those for every day: one of each kind.
    """

    tests: tuple[str, ...]
    mutants: tuple[Mutant, ...]
    fast: tuple[str, ...]
