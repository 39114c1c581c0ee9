"""
``machine.vmstat``: Linux's counters by their names in ``/proc/vmstat``, in that file's order.

The names are those of Linux 6.18.  A counter of something that this machine does not have yet is
0, as on a kernel where that part is idle.
"""

from __future__ import annotations

from collections.abc import ItemsView, Iterable, Iterator, Mapping, ValuesView
from typing import Any

from realmem import watermark
from realmem.layout import ZONE_NAMES
from realmem.thp import PMD_ORDER
from realmem.zonestat import ZoneStat, read_node_zones, read_zones

ZONE_STAT_ITEMS = tuple(
    """
    nr_free_pages nr_free_pages_blocks nr_zone_inactive_anon nr_zone_active_anon
    nr_zone_inactive_file nr_zone_active_file nr_zone_unevictable nr_zone_write_pending
    nr_mlock nr_zspages nr_free_cma
    """.split()
)
NUMA_STAT_ITEMS = (
    "numa_hit",
    "numa_miss",
    "numa_foreign",
    "numa_interleave",
    "numa_local",
    "numa_other",
)
NODE_STAT_ITEMS = tuple(
    """
    nr_inactive_anon nr_active_anon nr_inactive_file nr_active_file nr_unevictable
    nr_slab_reclaimable nr_slab_unreclaimable nr_isolated_anon nr_isolated_file
    workingset_nodes workingset_refault_anon workingset_refault_file workingset_activate_anon
    workingset_activate_file workingset_restore_anon workingset_restore_file
    workingset_nodereclaim nr_anon_pages nr_mapped nr_file_pages nr_dirty nr_writeback
    nr_shmem nr_shmem_hugepages nr_shmem_pmdmapped nr_file_hugepages nr_file_pmdmapped
    nr_anon_transparent_hugepages nr_vmscan_write nr_vmscan_immediate_reclaim nr_dirtied
    nr_written nr_throttled_written nr_kernel_misc_reclaimable nr_foll_pin_acquired
    nr_foll_pin_released nr_kernel_stack nr_page_table_pages nr_sec_page_table_pages
    nr_iommu_pages nr_swapcached pgpromote_success pgpromote_candidate pgpromote_candidate_nrl
    pgdemote_kswapd pgdemote_direct pgdemote_khugepaged pgdemote_proactive nr_hugetlb
    nr_balloon_pages nr_kernel_file_pages
    """.split()
)
GLOBAL_STAT_ITEMS = (
    "nr_dirty_threshold",
    "nr_dirty_background_threshold",
    "nr_memmap_pages",
    "nr_memmap_boot_pages",
)


def _of_zones(name: str) -> str:
    return " ".join(f"{name}_{zone.lower()}" for zone in ZONE_NAMES)


VM_EVENT_ITEMS = tuple(
    f"""
    pgpgin pgpgout pswpin pswpout
    {_of_zones("pgalloc")} {_of_zones("allocstall")} {_of_zones("pgskip")}
    pgfree pgactivate pgdeactivate pglazyfree
    pgfault pgmajfault pglazyfreed pgrefill pgreuse pgsteal_kswapd pgsteal_direct
    pgsteal_khugepaged pgsteal_proactive pgscan_kswapd pgscan_direct pgscan_khugepaged
    pgscan_proactive pgscan_direct_throttle pgscan_anon pgscan_file pgsteal_anon pgsteal_file
    zone_reclaim_success zone_reclaim_failed pginodesteal slabs_scanned kswapd_inodesteal
    kswapd_low_wmark_hit_quickly kswapd_high_wmark_hit_quickly pageoutrun pgrotated
    drop_pagecache drop_slab oom_kill numa_pte_updates numa_huge_pte_updates numa_hint_faults
    numa_hint_faults_local numa_pages_migrated pgmigrate_success pgmigrate_fail
    thp_migration_success thp_migration_fail thp_migration_split compact_migrate_scanned
    compact_free_scanned compact_isolated compact_stall compact_fail compact_success
    compact_daemon_wake compact_daemon_migrate_scanned compact_daemon_free_scanned
    htlb_buddy_alloc_success htlb_buddy_alloc_fail unevictable_pgs_culled
    unevictable_pgs_scanned unevictable_pgs_rescued unevictable_pgs_mlocked
    unevictable_pgs_munlocked unevictable_pgs_cleared unevictable_pgs_stranded thp_fault_alloc
    thp_fault_fallback thp_fault_fallback_charge thp_collapse_alloc thp_collapse_alloc_failed
    thp_file_alloc thp_file_fallback thp_file_fallback_charge thp_file_mapped thp_split_page
    thp_split_page_failed thp_deferred_split_page thp_underused_split_page thp_split_pmd
    thp_scan_exceed_none_pte thp_scan_exceed_swap_pte thp_scan_exceed_share_pte thp_split_pud
    thp_zero_page_alloc thp_zero_page_alloc_failed thp_swpout thp_swpout_fallback
    balloon_inflate balloon_deflate balloon_migrate swap_ra swap_ra_hit swpin_zero swpout_zero
    ksm_swpin_copy cow_ksm zswpin zswpout zswpwb direct_map_level2_splits
    direct_map_level3_splits direct_map_level2_collapses direct_map_level3_collapses
    """.split()
)

VMSTAT_ITEMS = (
    *ZONE_STAT_ITEMS,
    *NUMA_STAT_ITEMS,
    *NODE_STAT_ITEMS,
    *GLOBAL_STAT_ITEMS,
    *VM_EVENT_ITEMS,
    "nr_unstable",  # the file's last line since 5.8, always 0
)

DIRTY_RATIO = 20
DIRTY_BACKGROUND_RATIO = 10


def zone_counters(zones: Iterable[ZoneStat]) -> dict[str, int]:
    """Sum the zone counters and NUMA events of some zones, in the kernel's order."""
    counters = dict.fromkeys((*ZONE_STAT_ITEMS, *NUMA_STAT_ITEMS), 0)
    for zone in zones:
        counters["nr_free_pages"] += zone.free
        counters["nr_free_pages_blocks"] += zone.free_in_pageblocks
        for name, count in zip(NUMA_STAT_ITEMS, zone.numa, strict=True):
            counters[name] += count
    return counters


def node_counters(machine: Any, nid: int) -> dict[str, int]:
    """Give one node's own counters (those a zone does not have), in the kernel's order."""
    frames = machine._allocator.frame_stat(nid)
    counters = dict.fromkeys(NODE_STAT_ITEMS, 0)
    counters["nr_anon_pages"] = frames["anon"]
    # mm/vmstat.c:vmstat_item_print_in_thp()
    counters["nr_anon_transparent_hugepages"] = frames["anon_huge"] >> PMD_ORDER
    counters["nr_shmem"] = frames["shmem"]
    counters["nr_file_pages"] = frames["shmem"] + frames["file"]
    counters["nr_dirty"] = frames["dirty"]
    counters["nr_mapped"] = frames["mapped"]
    # By what they are; new ones wait in their threads' lists before they are on any.
    counters["nr_active_anon"] = frames["active"]
    counters["nr_active_file"] = frames["active_file"]
    counters["nr_inactive_anon"] = (
        frames["anon"] + frames["shmem"] - frames["mlocked"] - frames["active"]
    )
    counters["nr_inactive_file"] = (
        frames["file"] - frames["mlocked_file"] - frames["active_file"]
    )
    counters["nr_unevictable"] = frames["mlocked"] + frames["mlocked_file"]
    counters["nr_page_table_pages"] = frames["table"]
    counters["nr_slab_reclaimable"] = frames["slab_reclaimable"]
    counters["nr_slab_unreclaimable"] = frames["slab"]
    return counters


_EVENTS_OF_THE_MACHINE = frozenset(VM_EVENT_ITEMS) - frozenset(_of_zones("pgalloc").split())

# Counted by looking at every frame; all others are summed from counters.
_FRAME_ITEMS = frozenset(
    """
    nr_anon_pages nr_shmem nr_file_pages nr_dirty nr_mapped nr_inactive_anon nr_inactive_file
    nr_active_anon nr_active_file nr_unevictable nr_mlock
    nr_page_table_pages nr_slab_reclaimable nr_slab_unreclaimable nr_anon_transparent_hugepages
    """.split()
)


def node_vmstat(machine: Any, node: Any) -> dict[str, int]:
    """Give what ``/sys/devices/system/node/nodeN/vmstat`` holds."""
    return {
        **zone_counters(read_node_zones(machine, node)),
        **node_counters(machine, node.id),
    }


def read_vmstat(machine: Any, frames: bool = True) -> dict[str, int]:
    """
    Give every counter of ``/proc/vmstat``, in its order, all read together.

    :param frames: count what takes a look at every frame as well; 0 otherwise.
    """
    zones = read_zones(machine)
    counters = {**dict.fromkeys(VMSTAT_ITEMS, 0), **zone_counters(zones)}
    for node in machine.nodes if frames else ():
        for name, count in node_counters(machine, node.id).items():
            counters[name] += count
    counters["nr_mlock"] = counters["nr_unevictable"]
    background, limit = dirty_limits(zones)
    counters["nr_dirty_background_threshold"] = background
    counters["nr_dirty_threshold"] = limit
    # The struct page arrays lie in frames of their own nodes, taken at boot.
    counters["nr_memmap_boot_pages"] = sum(zone.present - zone.managed for zone in zones)
    for zone in zones:
        counters[f"pgalloc_{zone.name.lower()}"] += zone.pgalloc
    for name, count in machine._allocator.events().items():
        if name in counters:  # the others are hoststat's
            counters[name] = count
    counters.update(machine.thp.events())
    counters.update(paging_events(machine))
    return counters


def paging_events(machine: Any) -> dict[str, int]:
    """Count what NUMA hints did, and files' reads and writes, by the names in ``/proc/vmstat``."""
    paging = machine._paging
    if paging is None or paging.mmu is None:
        return {}
    return {**paging.mmu.hint_events, **paging.mmu.file_events}


def total_reserve(zones: Iterable[ZoneStat]) -> int:
    """Count the pages that user memory can't have."""
    return watermark.totalreserve_pages(
        (zone.managed, zone.watermark.high, zone.lowmem_reserve) for zone in zones
    )


def dirty_limits(zones: list[ZoneStat], file_pages: int = 0) -> tuple[int, int]:
    """
    Give the pages of dirty file memory at which writers are helped and are stopped.

    Compare mm/page-writeback.c:global_dirty_limits() => domain_dirty_limits().
    """
    free = sum(zone.free for zone in zones)
    dirtyable = max(free - total_reserve(zones), 0) + file_pages + 1
    limit = DIRTY_RATIO * 4096 // 100 * dirtyable // 4096
    background = DIRTY_BACKGROUND_RATIO * 4096 // 100 * dirtyable // 4096
    return (background if background < limit else limit // 2), limit


class VmStat(Mapping[str, int]):
    """
    Live mapping of ``/proc/vmstat``'s names to ints.

    Each look-up counts anew; ``items()``, ``values()`` and ``snapshot()`` read all of one moment.
    """

    def __init__(self, machine: Any) -> None:
        self._machine = machine

    def __getitem__(self, name: str) -> int:
        self._machine._allocator.check_alive()
        if name.startswith("thp_"):
            return int(self._machine.thp.events().get(name, 0))
        if name.startswith(("numa_pte_", "numa_hint_", "pgpg")):
            return int(paging_events(self._machine).get(name, 0))
        if name in _EVENTS_OF_THE_MACHINE:  # looked up most, and cheap on their own
            return int(self._machine._allocator.events().get(name, 0))
        return read_vmstat(self._machine, name in _FRAME_ITEMS)[name]

    def __iter__(self) -> Iterator[str]:
        return iter(VMSTAT_ITEMS)

    def __len__(self) -> int:
        return len(VMSTAT_ITEMS)

    def items(self) -> ItemsView[str, int]:
        """Give (name, count) pairs, all of one moment."""
        return self.snapshot().items()

    def values(self) -> ValuesView[int]:
        """Give the counts, all of one moment, in the file's order."""
        return self.snapshot().values()

    def snapshot(self) -> dict[str, int]:
        """Read every counter once, together."""
        self._machine._allocator.check_alive()
        return read_vmstat(self._machine)

    def __repr__(self) -> str:
        return f"VmStat({self.snapshot()!r})"
