"""
Where the host's kernel and realmem may differ, and why; nothing else is forgiven.

- **Names of VMAs** (prctl PR_SET_VMA): a kernel built without CONFIG_ANON_VMA_NAME answers EINVAL;
  there the generator leaves them out.
- **Soft-dirty** (pagemap bit 55, VmFlags sd): not compared, many kernels are built without it.
- **Sizes in between**: the host has more memory and a larger address space than realmem's window;
  no length lies between some MiB and 2^46, where one would answer ENOMEM and the other succeed.
- **MREMAP_DONTUNMAP of what is locked**: Linux takes the lock from the old place, but leaves its
  pages in VmLck for good (mm/mremap.c:dontunmap_complete()); left out while anything is locked.
- **Guard regions in pagemap**: the kernel also sets bit 62, for a marker is kept as a swap entry;
  nothing is swapped, and realmem says so.
- **MADV_PAGEOUT**: without swap the kernel still frees what MADV_FREE gave up and MAP_DROPPABLE
  pages, and unmaps shared ones; realmem reclaims nothing yet.  Left out where there are any.
- **process_madvise of no bytes with unknown advice**: 6.18 answers 0, for it looks at advice range
  by range; the kernel's selftests want EINVAL, as before and after.
- **Copies that the kernel makes for nothing**: a frame whose last owner writes is copied all the
  same while one of the kernel's batches (folio_batch: LRU, mlock) holds it.  realmem must copy
  nowhere else.
- **Donations**: of two that share a frame the writer may keep it, and the other finds another one;
  which pages are shared by whom is compared all the same.
- **Which of a file's own pages are mapped**: it depends on what the page cache has, on the host on
  everybody else's work.  Pages that were just accessed or populated are there, pages behind the
  end of the file are not; private copies are compared as anonymous pages are.  mincore(2) tells
  of the page cache, on the host even behind the end: folios of several pages reach there.
- **When a store is in the file**: with realmem when msync() returned, or the last mapping went.
  What is mapped is compared at all times, the bytes of the file itself from then on.
- **A page that is stored to here and written to from outside**: realmem writes the whole page back
  later, so it is told to write back what somebody else is about to write to.
- **Bytes behind the end of a file in its last page**: who stores there through a shared mapping
  finds them until the page is written back (mmap(2): unspecified); nobody does.
- **MADV_HWPOISON, MADV_SOFT_OFFLINE**: never asked for; the host would lose real memory.
"""

from __future__ import annotations

from dataclasses import replace

from host.host_world import GUARD, PRESENT, SHARED, SWAPPED
from host.ops import PAGE, Answer, Look, Op, Vma

# VmFlags that depend on how the host's kernel was built.
_UNEQUAL_FLAGS = {"sd"}


def same_answer(op: Op, host: Answer, ours: Answer, look: Look | None) -> bool:
    """
    Whether two answers agree.

    :param look: how the process looked before.
    """
    if op.name == "process_madvise" and not any(length for _, length in _ranges(op)):
        return True
    if op.name == "mincore" and host.kind == ours.kind == "ok" and look is not None:
        return _without_cached(op, host, look) == _without_cached(op, ours, look)
    return host == ours


def _without_cached(op: Op, answer: Answer, look: Look) -> bytes:
    """Take those pages out of what mincore answered of which the page cache decides."""
    assert isinstance(answer.value, bytes)
    told = bytearray(answer.value)
    start, length = (int(str(arg)) for arg in op.args)
    for vma, words in zip(look.vmas, look.words, strict=True):
        if vma.file is None or words is None:
            continue
        for i in vma.overlap(start, start + length):
            if not words[i] & PRESENT or is_cached(vma, words[i]):
                told[(vma.start - start >> 12) + i] = 0
    return bytes(told)


def is_cached(vma: Vma, word: int) -> bool:
    """Whether a pagemap word is that of a page of a file itself, no private copy."""
    return vma.file is not None and word & (PRESENT | SHARED) == PRESENT | SHARED


def settled(left: Look, right: Look) -> tuple[Look, Look]:
    """Leave those frames of files out that only one of two worlds has mapped."""
    frames = list(left.frames), list(right.frames)
    for at, vma in enumerate(left.vmas):
        ours, theirs = left.frames[at], right.frames[at]
        if vma.file is not None and ours is not None and theirs is not None:
            both = [one >= 0 and other >= 0 for one, other in zip(ours, theirs, strict=True)]
            for side, some in zip(frames, (ours, theirs), strict=True):
                side[at] = tuple([frame if here else -1
                                  for frame, here in zip(some, both, strict=True)])
    return replace(left, frames=tuple(frames[0])), replace(right, frames=tuple(frames[1]))


def uncached(look: Look) -> Look:
    """Leave out the frames that are pages of files themselves."""
    frames = list(look.frames)
    for at, (vma, words) in enumerate(zip(look.vmas, look.words, strict=True)):
        some = frames[at]
        if vma.file is not None and words is not None and some is not None:
            frames[at] = tuple([-1 if is_cached(vma, word) else frame
                                for frame, word in zip(some, words, strict=True)])
    return replace(look, frames=tuple(frames))


def stores_behind_end(op: Op, vmas: tuple[Vma, ...], sizes: tuple[int, ...]) -> bool:
    """Whether a write reaches bytes that a shared mapping shows behind the end of its file."""
    if op.name != "write":
        return False
    start, n = (int(str(arg)) for arg in op.args[:2])
    for vma in vmas:
        if vma.file is not None and vma.shared:
            end = vma.start + sizes[vma.file] - vma.offset
            behind = range(max(end, vma.start), min((end | PAGE - 1) + 1, vma.end))
            if end % PAGE and start < behind.stop and behind.start < start + n:
                return True
    return False


def _ranges(op: Op) -> tuple[tuple[int, int], ...]:
    ranges = op.args[0]
    assert isinstance(ranges, tuple)
    return ranges


def word(vma: Vma, raw: int) -> int:
    """Take those pagemap bits out that are not compared."""
    if is_cached(vma, raw):
        return 0
    return raw & ~SWAPPED if raw & GUARD else raw


def flags(text: str) -> str:
    """Take those VmFlags out that are not compared."""
    return " ".join(flag for flag in text.split() if flag not in _UNEQUAL_FLAGS)
