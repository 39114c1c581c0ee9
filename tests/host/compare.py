"""Take steps in two worlds and say where they part."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from host import differences
from host.files import MOST_BYTES, Files
from host.host_world import PRESENT
from host.ops import (
    ACCESSES,
    NOBODY,
    PAGE,
    Answer,
    Look,
    Op,
    brought,
    spell,
    synced,
    touched,
)

# All of every process is compared after so many steps, and what is stored in the files.
EVERY = 32
EVERY_SYNC = 128


class World(Protocol):
    """What takes steps and can be looked at."""

    files: Files

    def apply(self, op: Op) -> Answer: ...
    def look(self, slot: int) -> Look: ...
    def contents(self, slot: int, pages: list[tuple[int, int]]) -> list[bytes]: ...
    def flags(self, slot: int) -> dict[int, str]: ...
    def mapped_bytes(self, number: int) -> bytes: ...
    def sync(self, number: int) -> None: ...
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
    :ivar sizes: of the files.
    """

    def __init__(self, left: World, right: World) -> None:
        self.left, self.right = left, right
        self.alive: list[int] = []
        self.looks: dict[int, tuple[Look, Look]] = {}
        self.answers: Counter[tuple[str, str]] = Counter()
        self.sizes = left.files.sizes()
        self._mapped: set[int] = set()
        self.steps = 0

    def reset(self) -> None:
        """Begin again without processes."""
        self.left.reset()
        self.right.reset()
        self.alive.clear()
        self.looks.clear()
        self.sizes = self.left.files.sizes()
        self._mapped.clear()
        self.steps = 0

    def fits(self, op: Op) -> bool:
        """Whether a step can be taken: who is in it lives, who is to be born does not."""
        if op.slot == NOBODY:
            return True
        if op.name == "spawn":
            return op.slot not in self.alive
        look = self.looks.get(op.slot)
        if look is not None and differences.stores_behind_end(op, look[0].vmas, self.sizes):
            return False
        return op.slot in self.alive and not (op.name == "fork" and op.args[0] in self.alive)

    def step(self, op: Op) -> Answer:
        """
        Take one step in both worlds and compare what can have changed.

        :raises Parted: they differ.
        """
        before = self.looks.get(op.slot)
        if op.name in ACCESSES and before is not None:
            # Others' donations may have given it copies since.
            before = differences.settled(before[0], self.right.look(op.slot))
        right = self.right.apply(op)
        left = self.step_left(op)
        self.steps += 1
        self.answers[op.name, left.label] += 1
        if not differences.same_answer(op, left, right, before and before[0]):
            raise Parted(f"answer of {op.name}", left, right)
        self.sizes = self.left.files.sizes()
        concerned = {op.slot, op.args[0]} if op.name == "fork" else {op.slot}
        if op.name == "truncate":
            concerned = {slot for slot, looks in self.looks.items()
                         if any(vma.file == op.args[0] for vma in looks[0].vmas)}
        for slot in concerned & set(self.alive):
            self._compare(slot)
        self._files(op, left)
        if op.slot in self.alive:
            self._contents(op.slot, touched(op, left))
            self._presence(op.slot, brought(op, left))
        if op.name in ACCESSES and before is not None:
            self._copies(op.slot, before, touched(op, left))
        if self.steps % EVERY == 0:
            self.compare_all()
        if self.steps % EVERY_SYNC == 0:
            self.sync()
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
        for number in range(len(self.sizes)):
            self._same(f"bytes mapped of file {number}", self.left.mapped_bytes(number),
                       self.right.mapped_bytes(number))

    def sync(self) -> None:
        """
        Have both write back what is stored, and compare the files.

        :raises Parted: they differ.
        """
        for number in range(len(self.sizes)):
            self.left.sync(number)
            self.right.sync(number)
            self._stored(number)

    def _compare(self, slot: int) -> None:
        left, right = self.left.look(slot), self.right.look(slot)
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
                if differences.word(vma, one) != differences.word(vma, other):
                    raise Parted(f"pagemap of {slot} at {spell(vma.start + i * PAGE)}",
                                 f"{one:#x}", f"{other:#x}")
        self.looks[slot] = differences.settled(left, right)
        self._nothing_behind_ends(slot, left, right)

    def _nothing_behind_ends(self, slot: int, *looks: Look) -> None:
        for vma, *words in zip(looks[0].vmas, *(look.words for look in looks), strict=True):
            if vma.file is None or words[0] is None:
                continue
            first = max(0, self.sizes[vma.file] - vma.offset + PAGE - 1 >> 12)
            if any(word & PRESENT for some in words for word in some[first:]):
                raise Parted(f"pages of {slot} behind the end of file {vma.file} at "
                             f"{spell(vma.start)}", *(tuple(map(hex, some)) for some in words))

    def _presence(self, slot: int, ranges: list[tuple[int, int]]) -> None:
        """What was just faulted in is there, in both worlds."""
        look, other = self.looks[slot]
        for start, end in ranges:
            for vma, ours, theirs in zip(look.vmas, look.words, other.words, strict=True):
                if vma.file is None or ours is None or theirs is None:
                    continue
                for i in vma.overlap(start, end):
                    if (ours[i] ^ theirs[i]) & PRESENT:
                        raise Parted(f"pagemap of {slot} at {spell(vma.start + i * PAGE)}",
                                     f"{ours[i]:#x}", f"{theirs[i]:#x}")

    def _files(self, op: Op, answer: Answer) -> None:
        """Files that are no longer mapped, or were just written back, have what was stored."""
        if op.name in ("mmap", "munmap", "mremap", "exit"):
            mapped = {vma.file for look, _ in self.looks.values() for vma in look.vmas}
            for number in self._mapped - mapped:
                self._stored(number)
            self._mapped = mapped - {None}
        if op.name == "pwrite":
            self._stored(*(int(str(arg)) for arg in op.args[:3]))
        for start, end in synced(op, answer):
            flags = self.left.flags(op.slot)
            for vma in self.looks[op.slot][0].vmas:
                # What was opened for reading only looks shared, and is not.
                if vma.file is not None and "sh" in flags[vma.start].split():
                    for i in vma.overlap(start, end):
                        self._stored(vma.file, vma.offset + i * PAGE, PAGE)

    def _stored(self, number: int, at: int = 0, n: int = MOST_BYTES) -> None:
        self._same(f"bytes of file {number}",
                   *(world.files.read(number)[at:at + n] for world in (self.left, self.right)), at)

    @staticmethod
    def _same(what: str, ours: bytes, theirs: bytes, start: int = 0) -> None:
        if ours != theirs:
            both = enumerate(zip(ours, theirs, strict=False))
            at = next((i for i, (one, other) in both if one != other),
                      min(len(ours), len(theirs)))
            raise Parted(f"{what} at {start + at:#x}",
                         f"{ours[at:at + 16].hex(' ')}, {len(ours)} in all",
                         f"{theirs[at:at + 16].hex(' ')}, {len(theirs)} in all")

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
            other.append([spell(address)
                          for address, frame in self._pages_of(differences.uncached(now), ranges)
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
        pair.sync()
    except Parted as parted:
        return Divergence(steps - 1, parted.what, parted.left, parted.right)
    return None


__all__ = ["ACCESSES", "EVERY", "Divergence", "Pair", "Parted", "World", "replay"]
