"""
The option slab_debug: which caches are debugged, and how.

Linux's syntax (Documentation/mm/slub.rst, mm/slub.c:parse_slub_debug_flags()): blocks separated
by ``;``, each of letters and, behind a comma, names of caches, of which a final ``*`` matches any
rest.  A block without names is for all caches that no other block names.
"""

from __future__ import annotations

from dataclasses import dataclass

from realmem.layout import SLAB, get_order
from realmem.slabcalc import DEBUG_FLAGS, NO_FLAGS

_LETTERS = {
    "f": SLAB.CONSISTENCY_CHECKS,
    "z": SLAB.RED_ZONE,
    "p": SLAB.POISON,
    "u": SLAB.STORE_USER,
}
_METADATA = SLAB.RED_ZONE | SLAB.POISON | SLAB.STORE_USER


@dataclass(frozen=True)
class SlabDebug:
    """
    What the option asks for.

    :ivar everywhere: flags of the caches that no block names.
    :ivar blocks: (names, flags) of each block that has names, in order.
    :ivar only_same_order: leave out what would take more room where slabs would have to be
        larger for it.
    """

    everywhere: SLAB = NO_FLAGS
    blocks: tuple[tuple[tuple[str, ...], SLAB], ...] = ()
    only_same_order: bool = False

    def flags_of(self, name: str) -> SLAB:
        """Give the flags that a cache gets besides its own."""
        for names, flags in self.blocks:
            if any(_matches(pattern, name) for pattern in names):
                return flags
        return self.everywhere

    def may_grow(self, object_size: int, size: int) -> bool:
        """Say whether objects may come to take so much (disable_higher_order_debug)."""
        return not self.only_same_order or get_order(size) <= get_order(object_size)

    @staticmethod
    def without_metadata(flags: SLAB) -> SLAB:
        """Take away the flags that make objects larger."""
        return flags & ~_METADATA


def parse_slab_debug(text: str) -> SlabDebug:
    """
    Read the option.

    :raises ValueError: an unknown letter, or one of what is not there: ``A`` (see
        Machine.inject() instead) and ``T``.
    """
    everywhere = NO_FLAGS
    blocks = []
    same_order = False
    for block in filter(None, text.split(";")):
        letters, comma, names = block.partition(",")
        # Names alone ask for everything.
        flags = NO_FLAGS if letters or not comma else DEBUG_FLAGS
        for letter in letters.lower():
            if letter == "-":
                flags = NO_FLAGS
            elif letter == "o":
                same_order = True
            else:
                flags |= _flag(letter)
        if comma:
            blocks.append((tuple(filter(None, names.split(","))), flags))
        else:
            everywhere = flags
    return SlabDebug(everywhere, tuple(blocks), same_order)


def _flag(letter: str) -> SLAB:
    if letter in _LETTERS:
        return _LETTERS[letter]
    if letter == "a":
        raise ValueError("slab_debug: 'A' is not there: use machine.inject('slab', ...)")
    if letter == "t":
        raise ValueError("slab_debug: 'T' (tracing) is not there")
    raise ValueError(f"slab_debug: unknown letter {letter!r}: there are F Z P U O and -")


def _matches(pattern: str, name: str) -> bool:
    before, star, _rest = pattern.partition("*")
    return name.startswith(before) if star else name == pattern
