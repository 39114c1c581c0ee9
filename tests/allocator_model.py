"""
A plain model of the page allocator: what it may do with a request, and what it must count.

It knows frames as bytes in an array, zones as numbers, and Linux's rules in the simplest form.
Nothing here is shared with the code under test; only figures that other tests hold against the
kernel's formulas (zone bounds, watermarks, reserves) are read from the machine.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import realmem as rm
from realmem import GFP

DMA, DMA32, NORMAL, MOVABLE = range(4)
KINDS = {"DMA": DMA, "DMA32": DMA32, "Normal": NORMAL, "Movable": MOVABLE}
NUMA = ("numa_hit", "numa_miss", "numa_foreign", "interleave_hit", "local_node", "other_node")
PCP_ORDERS = (0, 1, 2, 3, 9)

# Requests of every kind, as (flags, how often).
MIX = [
    (GFP.KERNEL, 12),
    (GFP.ATOMIC, 4),
    (GFP.NOWAIT, 4),
    (GFP.USER, 4),
    (GFP.NOIO, 1),
    (GFP.HIGHUSER, 2),
    (GFP.HIGHUSER_MOVABLE, 12),
    (GFP.TRANSHUGE, 1),
    (GFP.KERNEL | GFP.DMA, 3),
    (GFP.KERNEL | GFP.DMA32, 4),
    (GFP.KERNEL | GFP.RECLAIMABLE, 4),
    (GFP.KERNEL | GFP.MOVABLE, 2),
    (GFP.ATOMIC | GFP.RECLAIMABLE | GFP.DMA32, 1),
    (GFP.KERNEL | GFP.ZERO, 3),
    (GFP.KERNEL | GFP.COMP, 3),
    (GFP.USER | GFP.COMP | GFP.ZERO, 1),
    (GFP.KERNEL | GFP.THISNODE, 4),
    (GFP.HIGHUSER_MOVABLE | GFP.THISNODE, 3),
    (GFP.KERNEL | GFP.NORETRY, 2),
    (GFP.KERNEL | GFP.RETRY_MAYFAIL, 1),
    (GFP.KERNEL | GFP.NOFAIL, 1),
    (GFP.KERNEL | GFP.HIGH, 1),
    (GFP.ATOMIC | GFP.NOMEMALLOC, 1),
    (GFP.KERNEL | GFP.MEMALLOC, 1),
    (GFP.KERNEL | GFP.MEMALLOC | GFP.NOMEMALLOC, 1),
    (GFP(0), 1),
]


@dataclass
class ZoneModel:
    """What the model knows of one zone."""

    index: int
    nid: int
    kind: int
    start: int
    end: int
    managed: int
    boot_free_area: list
    low: int = 0
    min: int = 0
    reserve: tuple = ()
    allocated: int = 0


@dataclass
class Block:
    """An allocation that is alive."""

    pfn: int
    order: int
    tag: int
    page: object
    address: int


class Mismatch(AssertionError):
    """The allocator did what the model does not allow."""


class Model:
    """
    Follows one machine's allocations.

    :param distance: the rows that the machine was built with, without ties.
    :param cpu_nid: node of the CPU that the calling thread is pinned to.
    """

    def __init__(self, machine, distance, cpu_nid):
        self.machine = machine
        self.core = machine._allocator
        self.cpu_nid = cpu_nid
        self.zones = {}
        for node in machine.nodes:
            for zone in node.zones:
                index = node.id * 4 + KINDS[zone.name]
                self.zones[index] = ZoneModel(
                    index, node.id, KINDS[zone.name], zone.start_pfn,
                    zone.start_pfn + zone.spanned_pages, zone.managed_pages, zone.free_area,
                )
        self.read_marks()
        last = max(zone.end for zone in self.zones.values())
        self.used = bytearray(last)
        self.zone_of = [None] * last
        for zone in self.zones.values():
            self.zone_of[zone.start:zone.end] = [zone] * (zone.end - zone.start)
        nodes = range(len(machine.nodes))
        self.node_order = [sorted(nodes, key=lambda n, row=row: row[n]) for row in distance]
        self.lists = {
            (nid, this, highest): self._zonelist(nid, this, highest)
            for nid in nodes for this in (False, True) for highest in range(4)
        }
        self.blocks = []
        self.pgalloc = [0] * 4
        self.pgfree = 0
        self.numa = [dict.fromkeys(NUMA, 0) for _ in nodes]
        self.failures = self.fallbacks = self.serial = 0
        self.base = None
        self.words = None
        self.start = self._counters()

    def _zonelist(self, nid, this_node, highest):
        order = [nid] if this_node else self.node_order[nid]
        return [
            self.zones[n * 4 + kind]
            for n in order for kind in range(highest, -1, -1)
            if n * 4 + kind in self.zones and self.zones[n * 4 + kind].managed
        ]

    def read_marks(self):
        """Take over the machine's marks, after a sysctl."""
        for zone in self.zones.values():
            seen = self.machine.nodes[zone.nid].zone(
                next(name for name, kind in KINDS.items() if kind == zone.kind))
            zone.min, zone.low = seen.watermark.min, seen.watermark.low
            zone.reserve = tuple(seen.lowmem_reserve)

    # ---- what Linux's rules say ----

    @staticmethod
    def highest_zone(gfp):
        """Name the highest kind of zone that a request may use."""
        if gfp & GFP.DMA:
            return DMA
        if gfp & GFP.DMA32:
            return DMA32
        if gfp & GFP.HIGHMEM and gfp & GFP.MOVABLE:
            return MOVABLE
        return NORMAL

    def zonelist(self, gfp, nid):
        """List the zones that a request may be served from, in order."""
        nid = self.cpu_nid if nid is None or nid == -1 else nid
        return self.lists[nid, bool(gfp & GFP.THISNODE), self.highest_zone(gfp)]

    @staticmethod
    def ignores_marks(gfp):
        """Whether a request may take the very last page."""
        if gfp & GFP.MEMALLOC and not gfp & GFP.NOMEMALLOC:
            return True
        return bool(gfp & GFP.NOFAIL and gfp & GFP.DIRECT_RECLAIM)

    @staticmethod
    def deepest(zone, gfp):
        """Give the mark that a request may go down to, reserves not counted."""
        mark = zone.min
        if gfp & GFP.HIGH:
            mark -= mark // 2
            if not gfp & GFP.DIRECT_RECLAIM and not gfp & GFP.NOMEMALLOC:
                mark -= mark // 4
        return mark

    @staticmethod
    def above(zone, free, mark, order, highest):
        """Whether that many free pages are enough for a block."""
        return free - ((1 << order) - 1) > mark + zone.reserve[highest]

    def free_pages(self, zone):
        """Ask how many pages lie in a zone's free areas."""
        return self.core.free_pages_of(zone.index)

    def has_block(self, zone, order, only_type=None):
        """Whether a free area of a zone has a block that large (reserved pageblocks aside)."""
        nr_free = self.core.zone_stat(zone.index)["nr_free"]
        types = (0, 1, 2) if only_type is None else (only_type,)
        return any(nr_free[o][t] for o in range(order, 11) for t in types)

    # ---- allocating ----

    def alloc(self, gfp, order, nid=None, how="node"):
        """Allocate, and hold what comes back against the rules; None when memory lacks."""
        zones = self.zonelist(gfp, nid)
        free = [self.core.free_pages_of(zone.index) for zone in zones]
        try:
            if how == "node":
                page = self.machine.alloc_pages_node(-1 if nid is None else nid, gfp, order)
            elif how == "pages":
                page = self.machine.alloc_pages(gfp, order, node=nid)
            else:
                address = self.machine.get_free_pages(gfp, order)
                page = self.machine.virt_to_page(address)
        except rm.OutOfMemory as error:
            if (error.order, error.gfp) != (order, gfp):
                raise Mismatch(f"{error!r} for order {order}, {gfp!r}") from None
            self._failure_is_right(zones, free, gfp, order)
            self.failures += 1
            return None
        block = self._take(page, order)
        if how == "addr" and address != page.address:
            raise Mismatch(f"{address:#x} is not {page!r}")
        self._count(self.zone_of[block.pfn], zones[0], order)
        self._choice_is_right(self.zone_of[block.pfn], zones, free, gfp, order)
        if gfp & GFP.ZERO:
            self._is_zero(block)
        self._tag(block)
        self.blocks.append(block)
        return block

    def bulk(self, gfp, n, nid=None):
        """Allocate n single pages at once."""
        zones = self.zonelist(gfp, nid)
        pages = self.machine.alloc_pages_bulk(gfp, n, node=nid)
        if len(pages) > n:
            raise Mismatch(f"{len(pages)} pages for {n}")
        for page in pages:
            block = self._take(page, 0)
            zone = self.zone_of[block.pfn]
            if zone not in zones:
                raise Mismatch(f"{page!r} from {zone} for {gfp!r} on {nid}")
            self._count(zone, zones[0], 0)
            self._tag(block)
            self.blocks.append(block)
        if len(pages) < n:
            self._failure_is_right(zones, [self.free_pages(zone) for zone in zones], gfp, 0)
        return pages

    def _take(self, page, order):
        pfn = page.pfn
        size = 1 << order
        if pfn & (size - 1):
            raise Mismatch(f"pfn {pfn} is not aligned to order {order}")
        zone = self.zone_of[pfn]
        if zone is None or pfn + size > zone.end:
            raise Mismatch(f"pfn {pfn} order {order} reaches out of {zone}")
        if self.used.find(1, pfn, pfn + size) >= 0:
            raise Mismatch(f"pfn {pfn} order {order} overlaps a block that is allocated")
        if page.node != zone.nid or page.order != order or page.refcount != 1:
            raise Mismatch(f"{page!r}: {page.node}, {page.order}, {page.refcount}")
        self.used[pfn:pfn + size] = b"\1" * size
        zone.allocated += size
        self.serial += 1
        return Block(pfn, order, self.serial, page, page.address)

    def _count(self, zone, preferred, order):
        self.pgalloc[zone.kind] += 1 << order
        at = self.numa[zone.nid]
        if zone.nid == preferred.nid:
            at["numa_hit"] += 1
        else:
            at["numa_miss"] += 1
            self.numa[preferred.nid]["numa_foreign"] += 1
        at["local_node" if zone.nid == self.cpu_nid else "other_node"] += 1

    def _choice_is_right(self, zone, zones, free, gfp, order):
        if zone is zones[0]:
            rank = 0
        elif zone in zones:
            rank = zones.index(zone)
            self.fallbacks += 1
        else:
            raise Mismatch(f"{gfp!r} of order {order} was served from {zone}")
        highest = self.highest_zone(gfp)
        # Whatever way it took, it may not have gone below the deepest mark that gfp allows.
        if not self.ignores_marks(gfp) and not self.above(
                zone, free[rank], self.deepest(zone, gfp), order, highest):
            if not gfp & GFP.DIRECT_RECLAIM:
                raise Mismatch(f"{gfp!r} of order {order} below the marks of {zone}: {free[rank]}")
            # The per-CPU lists were drained into it: everything that nobody holds was free.
            spare = zone.managed - (zone.allocated - (1 << order))
            if not self.above(zone, spare, self.deepest(zone, gfp), order, highest):
                raise Mismatch(f"{gfp!r} of order {order} below the marks of {zone}: {spare}")
        # And no zone before it could have served at the low mark.
        for before, had in zip(zones[:rank], free, strict=False):
            if not self.above(before, had, before.low, order, highest):
                continue
            if order and self.free_pages(before) != had:
                continue                # drained since: its blocks were others then
            if order and not self.has_block(before, order):
                continue
            if self._kept_clean(before, zones[0], gfp, order):
                continue
            raise Mismatch(f"{gfp!r} of order {order} went to {zone} though {before} had {had}")

    def _kept_clean(self, zone, preferred, gfp, order):
        """Whether Linux's ALLOC_NOFRAGMENT lets a request pass a zone by."""
        below = self.zones.get(preferred.index - 1)
        if preferred.kind != NORMAL or not below or not below.managed:
            return False
        return not self.has_block(zone, order, int(gfp) >> 3 & 3) and not self.has_block(zone, 9)

    def _failure_is_right(self, zones, free, gfp, order):
        """Hold a refusal against the zones as they are now."""
        highest = self.highest_zone(gfp)
        for zone, had in zip(zones, free, strict=True):
            now = self.free_pages(zone)
            if gfp & GFP.DIRECT_RECLAIM:
                if any(entry["count"] for entry in self.core.zone_stat(zone.index)["pcp"]):
                    raise Mismatch(f"{gfp!r} failed with pages in the per-CPU lists of {zone}")
                had = now
            if self.ignores_marks(gfp) or self.above(
                    zone, had, self.deepest(zone, gfp), order, highest):
                if had == now and self.has_block(zone, order):
                    raise Mismatch(f"{gfp!r} of order {order} failed though {zone} had {had}")

    # ---- memory ----

    def _memory(self, block):
        if self.words is None:
            import ctypes

            self.base = block.address - (block.pfn << 12)
            size = len(self.used) << 9
            self.words = memoryview((ctypes.c_uint64 * size).from_address(self.base)).cast(
                "B").cast("Q")
        return self.words

    def _is_zero(self, block):
        words = self._memory(block)
        size = 512 << block.order
        first = block.pfn << 9
        for at in {0, size - 1, size // 2, *range(0, size, 512)}:
            if words[first + at]:
                raise Mismatch(f"{block} is not zero at word {at}")

    def _tag(self, block):
        words = self._memory(block)
        words[block.pfn << 9] = block.tag
        words[((block.pfn + (1 << block.order)) << 9) - 1] = block.tag

    def _untouched(self, block):
        words = self._memory(block)
        last = ((block.pfn + (1 << block.order)) << 9) - 1
        if words[block.pfn << 9] != block.tag or words[last] != block.tag:
            raise Mismatch(f"{block} was written by somebody else")

    # ---- freeing ----

    def pop(self, at):
        """Take a block off the model's list, the last one in its place."""
        block = self.blocks[at]
        self.blocks[at] = self.blocks[-1]
        self.blocks.pop()
        return block

    def forget(self, block):
        """Note that a block is free."""
        self._untouched(block)
        size = 1 << block.order
        self.used[block.pfn:block.pfn + size] = bytes(size)
        self.zone_of[block.pfn].allocated -= size
        self.pgfree += size

    def free(self, at, how="page"):
        """Free the at-th living block."""
        block = self.pop(at)
        self.forget(block)
        if how == "page":
            self.machine.free_pages(block.page, block.order)
        elif how == "addr":
            self.machine.free_pages(block.address, block.order)
        else:
            block.page.put()

    def free_bulk(self, n):
        """Free up to n single pages at once."""
        single = [i for i in range(len(self.blocks) - 1, -1, -1) if not self.blocks[i].order][:n]
        blocks = [self.pop(i) for i in single]
        for block in blocks:
            self.forget(block)
        self.machine.free_pages_bulk([block.page for block in blocks])

    # ---- comparing ----

    def _counters(self):
        vmstat = self.machine.vmstat.snapshot()
        return (
            [dict(node.stat) for node in self.machine.nodes],
            [vmstat["pgalloc_" + name.lower()] for name in KINDS],
            vmstat["pgfree"],
        )

    def check(self):
        """Compare counters, recount the machine."""
        self.machine.check()
        numa, pgalloc, pgfree = self._counters()
        numa0, pgalloc0, pgfree0 = self.start
        for nid, (now, then) in enumerate(zip(numa, numa0, strict=True)):
            moved = {name: now[name] - then[name] for name in NUMA}
            if moved != self.numa[nid]:
                raise Mismatch(f"node {nid}: {moved}, expected {self.numa[nid]}")
        moved = [a - b for a, b in zip(pgalloc, pgalloc0, strict=True)]
        if moved != self.pgalloc or pgfree - pgfree0 != self.pgfree:
            raise Mismatch(f"pgalloc {moved} pgfree {pgfree - pgfree0}, expected "
                           f"{self.pgalloc} {self.pgfree}")
        for zone in self.zones.values():
            stat = self.core.zone_stat(zone.index)
            listed = sum(entry["count"] for entry in stat["pcp"])
            if stat["free_pages"] + listed + zone.allocated != zone.managed:
                raise Mismatch(f"{zone}: {stat['free_pages']} free, {listed} listed")

    def free_everything(self):
        """Free all and drain: the free areas are what they were at boot."""
        while self.blocks:
            self.free(len(self.blocks) - 1)
        self.machine.drain_all_pages()
        self.check()
        for zone in self.zones.values():
            name = next(name for name, kind in KINDS.items() if kind == zone.kind)
            now = self.machine.nodes[zone.nid].zone(name).free_area
            if now != zone.boot_free_area:
                raise Mismatch(f"{zone}: free areas {now}, at boot {zone.boot_free_area}")


def random_walk(model, seed, ops, check_every=250):
    """Run a random mix of allocations and frees; memory fills up and empties in waves."""
    rng = random.Random(seed)
    kinds = [gfp for gfp, _ in MIX]
    weights = [weight for _, weight in MIX]
    nids = [None, *range(len(model.machine.nodes))]
    orders = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]
    small = [60, 12, 8, 8, 4, 3, 2, 1, 1, 1, 1]
    large = [10, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5]
    pick = rng.random
    done = 0
    allocate = 0.55
    while done < ops:
        # A wave: some hundred operations of one character.
        allocate = rng.choice((0.3, 0.45, 0.55, 0.7, 0.95))
        length = min(rng.randrange(100, 800), ops - done)
        requests = zip(
            rng.choices(kinds, weights, k=length),
            rng.choices(orders, rng.choice((small, small, large)), k=length),
            rng.choices(nids, k=length), strict=True,
        )
        for gfp, order, nid in requests:
            done += 1
            if pick() < allocate:
                if nid is None and pick() < 0.5:
                    model.alloc(gfp & ~GFP.HIGHMEM, order, how="addr")
                else:
                    model.alloc(gfp, order, nid, how="node" if done & 1 else "pages")
            elif model.blocks:
                at = int(pick() * len(model.blocks))
                block = model.blocks[at]
                how = ("page", "addr", "put", "page")[done & 3]
                model.free(at, how if block.order == 0 or how != "put" else "page")
            if done % check_every == 0:
                model.check()
        if pick() < 0.1:
            model.machine.drain_all_pages()
        if pick() < 0.2:
            n = rng.choice((1, 7, 64, 300))
            model.bulk(rng.choice((GFP.KERNEL, GFP.HIGHUSER_MOVABLE, GFP.NOWAIT)), n,
                       rng.choice(nids))
            done += n
        if pick() < 0.2:
            model.free_bulk(rng.choice((1, 50, 500)))
