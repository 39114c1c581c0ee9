"""Take steps in two worlds and say where they part."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from host import differences
from host.ops import ACCESSES, PAGE, Answer, Look, Op, spell, touched

# All of every process is compared after so many steps.
EVERY = 32


class World(Protocol):
    """What takes steps and can be looked at."""

    def apply(self, op: Op) -> Answer: ...
    def look(self, slot: int) -> Look: ...
    def contents(self, slot: int, pages: list[tuple[int, int]]) -> list[bytes]: ...
    def flags(self, slot: int) -> dict[int, str]: ...
    def reset(self) -> None: ...


@dataclass(frozen=True)
class Divergence:
    """
    Where two worlds parted.

    :ivar step: index of the step after which they did.
    :ivar what: kind of difference, in a few words.
    :ivar left: what the first world has.
    :ivar right: what the second one has.
    """

    step: int
    what: str
    left: str
    right: str

    def __str__(self) -> str:
        return f"step {self.step}: {self.what}\n  host:    {self.left}\n  realmem: {self.right}"


class Parted(Exception):
    """Two worlds differ."""

    def __init__(self, what: str, left: object, right: object) -> None:
        super().__init__(what)
        self.what, self.left, self.right = what, str(left), str(right)


class Pair:
    """
    Two worlds that take the same steps.

    :ivar alive: slots of the processes there are, the oldest first.
    :ivar looks: what the first world last showed of each.
    :ivar answers: how the steps ended: (name, label) to how often.
    """

    def __init__(self, left: World, right: World) -> None:
        self.left, self.right = left, right
        self.alive: list[int] = []
        self.looks: dict[int, tuple[Look, Look]] = {}
        self.answers: Counter[tuple[str, str]] = Counter()
        self.steps = 0

    def reset(self) -> None:
        """Begin again without processes."""
        self.left.reset()
        self.right.reset()
        self.alive.clear()
        self.looks.clear()
        self.steps = 0

    def fits(self, op: Op) -> bool:
        """Whether a step can be taken: who is in it lives, who is to be born does not."""
        if op.name == "spawn":
            return op.slot not in self.alive
        return op.slot in self.alive and not (op.name == "fork" and op.args[0] in self.alive)

    def step(self, op: Op) -> Answer:
        """
        Take one step in both worlds and compare what can have changed.

        :raises Parted: they differ.
        """
        before = self.looks.get(op.slot)
        if op.name in ACCESSES and before is not None:
            # Others' donations may have given it copies since.
            before = before[0], self.right.look(op.slot)
        right = self.right.apply(op)
        left = self.step_left(op)
        self.steps += 1
        self.answers[op.name, left.label] += 1
        if not differences.same_answer(op, left, right):
            raise Parted(f"answer of {op.name}", left, right)
        concerned = {op.slot, op.args[0]} if op.name == "fork" else {op.slot}
        for slot in concerned & set(self.alive):
            self._compare(slot)
        if op.slot in self.alive:
            self._contents(op.slot, touched(op, left))
        if op.name in ACCESSES and before is not None:
            self._copies(op.slot, before, touched(op, left))
        if self.steps % EVERY == 0:
            self.compare_all()
        return left

    def step_left(self, op: Op) -> Answer:
        """Take a step in the first world only."""
        left = self.left.apply(op)
        if op.name in ("spawn", "fork") and left.kind == "ok":
            self.alive.append(op.slot if op.name == "spawn" else int(str(op.args[0])))
        if op.name == "exit":
            self.alive.remove(op.slot)
            self.looks.pop(op.slot, None)
        return left

    def compare_all(self) -> None:
        """
        Compare everything that there is.

        :raises Parted: they differ.
        """
        shared: tuple[dict[int, int], dict[int, int]] = {}, {}
        for slot in self.alive:
            self._compare(slot)
            self._contents(slot, None)
            self._frames(slot, shared)
            left, right = self.left.flags(slot), self.right.flags(slot)
            for start in left.keys() | right.keys():
                pair = differences.flags(left.get(start, "")), right.get(start, "")
                if pair[0] != differences.flags(pair[1]):
                    raise Parted(f"VmFlags of {slot}'s VMA at {spell(start)}", *pair)

    def _compare(self, slot: int) -> None:
        left, right = self.left.look(slot), self.right.look(slot)
        self.looks[slot] = left, right
        if left.vmas != right.vmas:
            lines = [set(left.vmas), set(right.vmas)]
            only = [sorted(lines[i] - lines[1 - i]) for i in (0, 1)]
            raise Parted(f"maps of {slot}", *("; ".join(map(str, some)) for some in only))
        if left.counts != right.counts:
            raise Parted(f"VmLck, VmSize, VmData of {slot}, pages", left.counts, right.counts)
        for vma, ours, theirs in zip(left.vmas, left.words, right.words, strict=True):
            if ours == theirs or ours is None or theirs is None:
                continue
            for i, (one, other) in enumerate(zip(ours, theirs, strict=True)):
                if differences.word(one) != differences.word(other):
                    raise Parted(f"pagemap of {slot} at {spell(vma.start + i * PAGE)}",
                                 f"{one:#x}", f"{other:#x}")

    def _pages(self, slot: int, which: int, ranges: list[tuple[int, int]] | None
               ) -> list[tuple[int, int]]:
        """List present pages with their frames."""
        return self._pages_of(self.looks[slot][which], ranges)

    @staticmethod
    def _pages_of(look: Look, ranges: list[tuple[int, int]] | None) -> list[tuple[int, int]]:
        found = []
        for vma, frames in zip(look.vmas, look.frames, strict=True):
            if frames is None:
                continue
            for start, end in [(vma.start, vma.end)] if ranges is None else ranges:
                first = max(start, vma.start) - vma.start >> 12
                last = min(end, vma.end) - vma.start >> 12
                found += [(vma.start + i * PAGE, frames[i]) for i in range(first, last)
                          if frames[i] >= 0]
        return found

    def _contents(self, slot: int, ranges: list[tuple[int, int]] | None) -> None:
        pages = [self._pages(slot, which, ranges) for which in (0, 1)]
        ours = self.left.contents(slot, pages[0])
        theirs = self.right.contents(slot, pages[1])
        if ours == theirs and len(pages[0]) == len(pages[1]):
            return
        for (address, _), one, other in zip(pages[0], ours, theirs, strict=True):
            if one != other:
                at = next(i for i in range(PAGE) if one[i] != other[i])
                raise Parted(f"contents of {slot} at {spell(address + at)}",
                             one[at:at + 16].hex(" "), other[at:at + 16].hex(" "))

    def _copies(self, slot: int, before: tuple[Look, Look], ranges: list[tuple[int, int]]) -> None:
        """Pages are copied where the kernel copies them; see differences for the reverse."""
        other = []
        for was, now in zip(before, self.looks[slot], strict=True):
            frames = dict(self._pages_of(was, ranges))
            other.append([spell(address) for address, frame in self._pages_of(now, ranges)
                          if frames.get(address, frame) != frame])
        if not set(other[1]) <= set(other[0]):
            raise Parted(f"which pages of {slot} were copied", *other)

    def _frames(self, slot: int, numbers: tuple[dict[int, int], dict[int, int]]) -> None:
        """Pages that are one frame in one world are one in the other."""
        pages = [self._pages(slot, which, None) for which in (0, 1)]
        if not any(frame for _, frame in pages[0]):
            return              # who may not see frame numbers sees zeros
        for (address, one), (_, other) in zip(*pages, strict=True):
            pair = [numbers[i].setdefault(frame, len(numbers[i]))
                    for i, frame in enumerate((one, other))]
            if pair[0] != pair[1]:
                raise Parted(f"which pages share a frame with {slot}'s at {spell(address)}",
                             f"the {pair[0]}th seen", f"the {pair[1]}th seen")


def replay(pair: Pair, ops: Iterable[Op], note: Callable[[Op, Answer], None] | None = None
           ) -> Divergence | None:
    """Take steps from the beginning; those that cannot be taken are left out."""
    pair.reset()
    steps = 0
    try:
        for op in ops:
            steps += 1
            if pair.fits(op):
                answer = pair.step(op)
                if note is not None:
                    note(op, answer)
        pair.compare_all()
    except Parted as parted:
        return Divergence(steps - 1, parted.what, parted.left, parted.right)
    return None


__all__ = ["ACCESSES", "EVERY", "Divergence", "Pair", "Parted", "World", "replay"]
