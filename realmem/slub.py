"""
What the checks of slab caches found, as SLUB words it.

Compare mm/slub.c (Linux 6.18): slab_bug(), print_trailer(), print_tracking(), slab_fix().  A
report goes to whoever made the call that found it, as an exception; else, as when compiled code
freed the object, it is logged by the logger ``realmem.slub`` when Python next passes by.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from realmem.codeaddress import describe_address

if TYPE_CHECKING:
    from realmem._core.slabs import SlabAllocator

logger = logging.getLogger(__name__)

KEPT = 256              # reports

Finding = dict[str, Any]
Track = tuple[int, tuple[tuple[str, int, str], ...], int, int, int]

# By the numbers of _kernel/slab_log.pxd.
_REGIONS = {
    1: "Left Redzone",
    2: "Right Redzone",
    3: "kmalloc Redzone",
    4: "Alignment padding",
    5: "Poison",
    6: "End Poison",
    7: "Object padding",
    8: "slab padding",
}
_SLAB_PADDING = 8
_TITLES = {
    **{number: f"{region} overwritten" for number, region in _REGIONS.items()},
    _SLAB_PADDING: "Padding overwritten. {start:#x}-{end:#x} @offset={offset}",
    9: "Freepointer corrupt",
    10: "Freechain corrupt",
    11: "Freelist Pointer check fails",
    12: "Object already free",
    13: "Wrong slab cache. {cache} but object is from {other}",
    14: "Invalid object pointer {found:#x}",
    15: "Freepointer corrupt",
    16: "Freelist cycle detected",
    17: "Wrong number of objects. Found {found} but should be {expected}",
    18: "Wrong object count. Counter is {found} but counted were {expected}",
    19: "objects {found} > max {expected}",
    20: "inuse {found} > max {expected}",
    21: "Slab disabled since SLUB metadata consistency check failed",
    22: "Slab has {inuse} allocated objects but 1 are to be freed",
    23: "{found} partial slabs in the counter, and not on the list",
    24: "Objects remaining on __kmem_cache_shutdown()",
    25: "Object is not a Slab page: {object:#x}",
}
_RESTORED = 32
_FIXES = {
    _RESTORED: "Restoring {region} {start:#x}-{end:#x}={expected:#x}",
    33: "Freelist cleared",
    34: "Number of objects adjusted",
    35: "Object count adjusted",
    36: "Marking all objects used",
    37: "Object at {object:#x} not freed",
}
_REMAINING_OBJECT = 64
_SECTIONS = ("Bytes b4 ", "Redzone  ", "Object   ", "Padding  ")
_PG_HEAD, _PG_SLAB, _ZONE_SHIFT = 5, 7, 48
_RULE = "=" * 77
_THIN_RULE = "-" * 77


@dataclass(frozen=True)
class SlabReport:
    """
    Something wrong in a slab cache.

    :ivar cache: its name.
    :ivar what: in SLUB's words, such as ``"Right Redzone overwritten"``.
    :ivar object: address of the object; None where it is about a slab.
    :ivar text: all of it: who allocated and freed the object, its bytes, what was repaired.
    """

    cache: str
    what: str
    object: int | None
    text: str

    def __str__(self) -> str:
        return self.text


class SlabReports:
    """
    The reports of one machine, the last ones kept.

    :param core: its slab allocator.
    """

    def __init__(self, core: SlabAllocator) -> None:
        self._core = core
        self._kept: deque[SlabReport] = deque(maxlen=KEPT)
        self._collecting = threading.RLock()

    def collect(self, name: str | None = None) -> str:
        """
        Take over what the kernel side found.

        :param name: of the cache whose reports the caller shows; all others are logged.
        :return: the text of those reports.
        """
        from realmem._core.checked_slabs import take_findings

        with self._collecting:
            findings, lost = take_findings(self._core)
            reports = list(make_reports(findings))
            self._kept.extend(reports)
        for report in reports:
            if report.cache != name:
                logger.error("%s", report.text)
        if lost:
            logger.error("%d more findings in slab caches came too fast to be kept", lost)
        return "\n".join(report.text for report in reports if report.cache == name)

    def all(self) -> list[SlabReport]:
        """Give the reports so far, the oldest first."""
        self.collect()
        return list(self._kept)


def make_reports(findings: Iterable[Finding]) -> Iterator[SlabReport]:
    """
    Make a report of each finding; what was repaired after it belongs to it.

    :param findings: of realmem._core.checked_slabs.take_findings().
    """
    open_reports: dict[str, tuple[Finding, list[str]]] = {}
    for finding in findings:
        cache = finding["cache"]
        is_bug = finding["what"] in _TITLES
        if is_bug and cache in open_reports:
            yield _close(*open_reports.pop(cache))
        if cache not in open_reports:
            open_reports[cache] = (finding, [_describe(finding)] if is_bug else [])
        if not is_bug:
            open_reports[cache][1].append(_fix_or_remaining(finding))
    for finding, lines in open_reports.values():
        yield _close(finding, lines)


def _close(finding: Finding, lines: list[str]) -> SlabReport:
    title = _title(finding) if finding["what"] in _TITLES else lines[0]
    about = finding["object"] or None
    return SlabReport(finding["cache"], title, about, "\n".join(lines))


def _title(finding: Finding) -> str:
    title = _TITLES[finding["what"]]
    return title.format(offset=finding["start"] - finding["base"], **finding)


def _describe(finding: Finding) -> str:
    return "\n".join(_lines(finding))


def _lines(finding: Finding) -> Iterator[str]:
    yield _RULE
    yield f"BUG {finding['cache']} (Not tainted): {_title(finding)}"
    yield _THIN_RULE
    yield ""
    if finding["what"] in _REGIONS and finding["what"] != _SLAB_PADDING:
        yield (
            f"{finding['start']:#x}-{finding['end']:#x} "
            f"@offset={finding['start'] - finding['base']}. "
            f"First byte {finding['found']:#x} instead of {finding['expected']:#x}"
        )
    yield from _tracking(finding)
    if finding["slab"]:
        yield (
            f"Slab {finding['slab']:#x} objects={finding['objects']} used={finding['inuse']} "
            f"fp={finding['freelist']:#x} flags={_page_flags(finding['slab_flags'])}"
        )
    if finding["is_object"]:
        yield (
            f"Object {finding['object']:#x} @offset={finding['object'] - finding['base']} "
            f"fp={finding['free_pointer']:#x}"
        )
        yield ""
    elif finding["object"] and finding["slab"]:
        yield f"Invalid pointer {finding['object']:#x}"
    for kind, address, text in finding["sections"]:
        yield from hex_dump(_SECTIONS[kind], address, text)


def _fix_or_remaining(finding: Finding) -> str:
    if finding["what"] == _REMAINING_OBJECT:
        where = finding["object"] - finding["base"]
        return "\n".join([f"Object {finding['object']:#x} @offset={where}", *_tracking(finding)])
    region = _REGIONS.get(finding["found"], "")
    return f"FIX {finding['cache']}: " + _FIXES[finding["what"]].format(region=region, **finding)


def _tracking(finding: Finding) -> Iterator[str]:
    for what, track in zip(("Allocated", "Freed"), finding["tracks"], strict=True):
        if track is not None:
            yield from _track(what, track)


def _track(what: str, track: Track) -> Iterator[str]:
    address, frames, cpu, pid, age = track
    if frames:
        first, *rest = (f"{function} ({file}:{line})" for file, line, function in frames)
    else:
        first, rest = describe_address(address) if address else "Python code", []
    yield f"{what} in {first} age={age} cpu={cpu} pid={pid}"
    yield from (f" {line}" for line in rest)


def _page_flags(flags: int) -> str:
    names = [name for bit, name in ((_PG_HEAD, "head"), (_PG_SLAB, "slab")) if flags >> bit & 1]
    zone = flags >> _ZONE_SHIFT
    return f"{flags:#x}({'|'.join([*names, f'node={zone // 4}', f'zone={zone % 4}'])})"


def hex_dump(label: str, address: int, text: bytes) -> Iterator[str]:
    """Write bytes 16 to a line (lib/hexdump.c:print_hex_dump())."""
    for at in range(0, len(text), 16):
        row = text[at : at + 16]
        letters = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in row)
        yield f"{label}{address + at:016x}: {row.hex(' '):<47}  {letters}"
