"""
Linux's rules for merging VMAs.

Compare mm/vma.c:is_mergeable_vma(), is_mergeable_anon_vma(), can_vma_merge_left(), _right().
"""

from __future__ import annotations

from collections.abc import Callable

from realmem.mm.vma import VM_ACCESS_FLAGS, VM_SPECIAL, VM_STICKY, Vma

Anon = tuple[int, bool]             # identity, 0 for none; whether it came with a fork
NO_ANON: Anon = (0, False)          # of what never faulted


def neighbours(
    new: Vma,
    anon: Anon,
    prev: Vma | None,
    following: Vma | None,
    anon_of: Callable[[Vma], Anon],
    *,
    may_be_forked: bool,
) -> tuple[Vma | None, Vma | None]:
    """
    Give the neighbours that ``new`` merges with.

    :param anon: the anon_vma that comes with ``new``.
    :param prev: the VMA before, adjacent or not.
    :param following: the VMA after.
    :param may_be_forked: whether a neighbour without an anon_vma takes over one from a fork.
    """
    if new.vm_flags_word & VM_SPECIAL:
        return None, None
    left = right = None
    if (
        prev is not None
        and prev.end == new.start
        and _alike(prev, new)
        and prev.pgoff + prev.pages == new.pgoff
        and _anon_agrees(anon_of(prev), anon, may_be_forked)
    ):
        left = prev
    if (
        following is not None
        and following.start == new.end
        and _alike(following, new)
        and following.pgoff == new.pgoff + new.pages
        and _anon_agrees(anon_of(following), anon, may_be_forked)
    ):
        right = following
    if left is not None and right is not None:
        # Each agrees with what lies between; that does not mean that they agree.
        one, other = anon_of(left)[0], anon_of(right)[0]
        if one and other and one != other:
            right = None
    return left, right


def _anon_agrees(target: Anon, source: Anon, may_be_forked: bool) -> bool:
    """Whether a neighbour can have the pages of both: no anon_vma is to grow by forks merged."""
    if not target[0] and source[0]:
        return may_be_forked or not source[1]
    if target[0] and not source[0]:
        return not target[1]
    return target[0] == source[0]


def _alike(one: Vma, other: Vma) -> bool:
    """Whether nothing but place and pages tells them apart."""
    return (
        not (one.vm_flags_word ^ other.vm_flags_word) & ~VM_STICKY
        and one.object is other.object
        and one.name == other.name
        and one.policy == other.policy
    )


def shares_anon(other: Vma, new: Vma, anon: Anon) -> bool:
    """
    Whether a neighbour's anon_vma will do for a VMA that gets its first page.

    They have to differ by nothing but their rights (mm/vma.c:anon_vma_compatible()).
    """
    left, right = (other, new) if other.start < new.start else (new, other)
    return (
        anon[0] != 0
        and not anon[1]
        and left.end == right.start
        and not (left.vm_flags_word ^ right.vm_flags_word) & ~(VM_STICKY | VM_ACCESS_FLAGS)
        and left.object is right.object
        and left.policy == right.policy
        and left.pgoff + left.pages == right.pgoff
    )


def join(left: Vma | None, middle: Vma, right: Vma | None) -> Vma:
    """Make one of up to three, with the sticky flags of each."""
    if left is None and right is None:
        return middle
    flags = middle.vm_flags_word
    start, pgoff, end = middle.start, middle.pgoff, middle.end
    if left is not None:
        start, pgoff = left.start, left.pgoff
        flags |= left.vm_flags_word & VM_STICKY
    if right is not None:
        end = right.end
        flags |= right.vm_flags_word & VM_STICKY
    return Vma(start, end, flags, pgoff, middle.object, middle.policy, middle.name)
