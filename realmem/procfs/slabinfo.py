"""
``/proc/slabinfo``: a line for each slab cache, the newest first.

Compare mm/slab_common.c:print_slabinfo_header(), cache_show(); mm/slub.c:get_slabinfo().
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from realmem._core.kmem_cache import KmemCache

HEADER = """\
slabinfo - version: 2.1
# name            <active_objs> <num_objs> <objsize> <objperslab> <pagesperslab> \
: tunables <limit> <batchcount> <sharedfactor> \
: slabdata <active_slabs> <num_slabs> <sharedavail>
"""


@dataclass(frozen=True)
class SlabLine:
    """
    One cache.

    :ivar objsize: bytes from one object to the next.
    """

    name: str
    active_objs: int
    num_objs: int
    objsize: int
    objperslab: int
    pagesperslab: int
    active_slabs: int
    num_slabs: int


def format_slabinfo(lines: Iterable[SlabLine]) -> str:
    """Write the file's text."""
    return HEADER + "".join(
        f"{line.name:<17} {line.active_objs:6} {line.num_objs:6} {line.objsize:6} "
        f"{line.objperslab:4} {line.pagesperslab:4} : tunables {0:4} {0:4} {0:4} "
        f": slabdata {line.active_slabs:6} {line.num_slabs:6} {0:6}\n"
        for line in lines
    )


_LINE = re.compile(
    r"^(\S+) +(\d+) +(\d+) +(\d+) +(\d+) +(\d+) : tunables +\d+ +\d+ +\d+ "
    r": slabdata +(\d+) +(\d+) +\d+$",
    re.MULTILINE,
)


def parse_slabinfo(text: str) -> list[SlabLine]:
    """Read the file's text, in its order."""
    return [SlabLine(name, *map(int, rest)) for name, *rest in _LINE.findall(text)]


def distinct_caches(machine: Any) -> Iterator[KmemCache]:
    """Yield each cache under its first name, the oldest first."""
    seen = set()
    for cache in list(machine.kmem_caches.values()):
        if cache.root not in seen:
            seen.add(cache.root)
            yield cache


def machine_slabinfo(machine: Any) -> str:
    """Give a machine's ``/proc/slabinfo``."""
    lines = []
    for cache in distinct_caches(machine):
        stat = cache.stat()
        lines.append(
            SlabLine(
                cache.name,
                stat["active_objs"],
                stat["num_objs"],
                cache.size,
                cache.objs_per_slab,
                1 << cache.order,
                stat["num_slabs"],
                stat["num_slabs"],
            )
        )
    return format_slabinfo(reversed(lines))

