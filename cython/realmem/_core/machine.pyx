# cython: language_level=3
"""A machine's structures: made, published to, counted, given back."""
from cpython.mem cimport PyMem_Calloc, PyMem_Free
from libc.errno cimport errno
from libc.stdint cimport int32_t, int64_t, uint8_t, uint64_t
from libc.string cimport memset, strerror

from realmem._core.faults cimport raise_pending
from realmem._kernel.buddy cimport (
    free_boot_range, init_zone, settle_locked, take_back_for, zone_watermark_ok,
)
from realmem._kernel.percpu cimport (
    drain_all_pages, fork_generation, freeze_cpu_areas, get_cpu_area, percpu_exit, percpu_init,
    thaw_cpu_areas,
)
from realmem._kernel.run cimport add_run_blocks
from realmem._kernel.slab_cache cimport slab_exit, slab_init
from realmem._kernel.stat cimport (
    count_frames, frame_stat, pcp_stat, sum_pcp_stats, sum_vm_events, sum_zone_events,
)
from realmem.compiler cimport spin_lock, spin_unlock
from realmem.linux cimport (
    MADV_DONTFORK, MAP_ANONYMOUS, MAP_FAILED, MAP_PRIVATE, PROT_READ, PROT_WRITE, madvise, mmap,
    munmap, sched_yield,
)
from realmem.types cimport (
    COUNTS_FREE, COUNTS_NEW, MAX_NR_ZONES, MAX_NUMNODES, MAX_PAGE_ORDER, MIGRATE_MOVABLE,
    MIGRATE_TYPES, NR_PAGE_ORDERS, NR_VM_EVENT_ITEMS, NR_VM_NUMA_EVENT_ITEMS, NR_WMARK,
    PAGE_RESERVED, PAGE_TAIL, PAGE_ZONE_SHIFT, PAGEBLOCK_ORDER, PG_reserved, cpu_area, machine,
    node, page, page_run, pfn_to_page, zone,
)

from realmem.errors import HostError

# Generations that no machine is made in.
cdef enum:
    CLOSING = -1                    # waiting for the last calls, or closed
    ENDING = -2                     # no new calls; processes are being ended

# Names of the machine-wide event counters, in the order of types.pxd.
EVENT_NAMES = (
    "pgfree", "pgfault", "pgmajfault", "pgreuse", "allocstall_dma", "allocstall_dma32",
    "allocstall_normal", "allocstall_movable", "kswapd_wake", "sigsegv", "map_fill",
    "map_flush", "mprotect", "spurious", "forbidden", "uffd_continue", "donation", "pswpin",
    "pswpout", "pgactivate", "pgdeactivate", "pglazyfreed", "pgrefill", "pgsteal_kswapd",
    "pgsteal_direct", "pgscan_kswapd", "pgscan_direct", "pgscan_anon", "pgscan_file",
    "pgsteal_anon", "pgsteal_file", "pageoutrun",
)


cdef class MachineCore:
    """
    Own a machine's control block and struct page array.

    :param owner: weak reference to the realmem.Machine, for reports in errors.
    :param direct_map: host address of simulated physical 0.
    :param vmemmap: host address of the struct page of pfn 0.
    :param nodes: for each node (host_node, emulated, nr_cpus, start_pfn, present_pages,
        memmap_pfn, memmap_pages).
    :param zones: MAX_NR_ZONES for each node, (start_pfn, spanned_pages); all are whole
        memory, frames of the struct page array included.
    :param zonelists: for each node, [fallback, this node only], each by highest zone: zone
        indexes in the order to try.
    :param cpu_to_node: node id by host CPU.
    :param options: MACHINE_* bits.
    :raises HostError: no memory for the control block.
    """

    def __cinit__(self, owner, uint64_t direct_map, uint64_t vmemmap, nodes, zones, zonelists,
                  cpu_to_node, unsigned int options=0):
        self.owner = owner
        self.generation = fork_generation
        self.m = build(self, direct_map, vmemmap, nodes, zones, zonelists, cpu_to_node, options)
        for nid in range(len(nodes)):
            boot_node(self.m, &self.m.nodes[nid])
        if percpu_init(self.m) != 0 or slab_init(self.m) != 0:
            self.release()
            raise HostError(errno, "no memory for per-CPU lists")

    def __dealloc__(self):
        if self.m != NULL and self.generation == fork_generation:
            self.release()

    cdef int alive(self) except -1:
        if self.m == NULL or self.generation < 0:
            raise ValueError("this machine is closed")
        if self.generation != fork_generation:
            raise ValueError("this machine was inherited over os.fork(); make a new one")
        return 0

    cdef int enter(self) except -1:
        self.alive()
        raise_pending()
        return 0

    cdef void release(self):
        percpu_exit(self.m)
        slab_exit(self.m)
        munmap(self.m, self.control_bytes)
        self.m = NULL

    def refuse_calls(self):
        """Answer every call from now on as a closed machine does; close() is to follow."""
        if self.m != NULL and self.generation == fork_generation:
            self.generation = ENDING

    def close(self):
        """
        Forget the structures; the caller unmaps the frames.

        Waits for threads that are inside without the GIL; no new ones come in.
        """
        if self.m == NULL or self.generation == CLOSING:
            return
        if self.generation == fork_generation or self.generation == ENDING:
            self.generation = CLOSING
            while self.busy:
                with nogil:
                    sched_yield()
            self.release()
        self.m = NULL

    @property
    def closed(self):
        """Whether the structures are gone."""
        return self.m == NULL

    def check_alive(self):
        """
        Do nothing on a machine that can be used.

        :raises ValueError: it is closed, or was inherited over os.fork().
        :raises SegmentationFault: this thread made a forbidden raw access that is due.
        """
        self.enter()

    @property
    def nr_exports(self):
        """Live buffers over this machine's frames."""
        return self.exports

    def keep(self, what):
        """Hold on to the memory that the structures describe."""
        self.kept = what

    def when_released(self, callback):
        """Call back when the last live buffer dies."""
        self.on_last_release = callback

    # ---- publication: what Python computed becomes what the kernel side uses ----

    def publish_zone(self, int index, *, watermark, lowmem_reserve, int batch, int high_min,
                     int high_max):
        """
        Give a zone its watermarks, reserves and list sizes.

        :param index: nid * 4 + kind of zone.
        :param watermark: (min, low, high, promo), pages.
        :param lowmem_reserve: pages kept from requests for each higher kind of zone.
        :param batch: pages moved between per-CPU lists and free areas at a time.
        :param high_min: least length of a per-CPU list, pages.
        :param high_max: greatest length of a per-CPU list, pages.
        """
        cdef int i
        cdef zone* z = self.zone_at(index)
        cdef cpu_area* area
        cdef uint64_t marks[4]
        cdef uint64_t reserves[4]
        # Converted aside first: nothing may raise while the lock is held.
        for i in range(NR_WMARK):
            marks[i] = watermark[i]
        for i in range(MAX_NR_ZONES):
            reserves[i] = lowmem_reserve[i]
        spin_lock(&z.lock)
        for i in range(NR_WMARK):
            z.watermark[i] = marks[i]
        for i in range(MAX_NR_ZONES):
            z.lowmem_reserve[i] = reserves[i]
        z.batch = batch
        z.high_min = high_min
        z.high_max = high_max
        z.flags = 0
        spin_unlock(&z.lock)
        freeze_cpu_areas(self.m)
        area = self.m.areas
        while area != NULL:
            area.pcp[index].high = high_min
            area = area.next
        thaw_cpu_areas(self.m)

    # ---- counting ----

    def zone_stat(self, int index):
        """
        Count a zone.

        :param index: nid * 4 + kind of zone.
        :return: dict: free_pages, nr_free (11 lists of 5, blocks by order and migratetype),
            pageblocks (5, by migratetype), pgalloc (pages), numa (6: hit miss foreign
            interleave_hit local other), pcp (a dict cpu, count, high for each CPU that ran
            here), nr_reserved_highatomic (pages).
        """
        cdef uint64_t counts[7]     # 1 + NR_VM_NUMA_EVENT_ITEMS
        cdef int64_t nr_free[11][5]
        cdef zone* z = self.zone_at(index)
        cdef uint64_t first, i
        cdef int64_t free_pages
        cdef int order, t
        sum_zone_events(self.m, index, counts)
        spin_lock(&z.lock)
        settle_locked(z)
        for order in range(NR_PAGE_ORDERS):
            for t in range(MIGRATE_TYPES):
                nr_free[order][t] = z.free_area[order].nr_free[t]
        add_run_blocks(z, nr_free)
        free_pages = z.free_pages
        spin_unlock(&z.lock)
        pageblocks = [0] * MIGRATE_TYPES
        if z.spanned_pages:
            first = z.pageblock_start
            for i in range(z.start_pfn >> PAGEBLOCK_ORDER,
                           ((z.start_pfn + z.spanned_pages - 1) >> PAGEBLOCK_ORDER) + 1):
                pageblocks[z.pageblock[i - first]] += 1
        return {
            "free_pages": free_pages,
            "nr_free": [[nr_free[order][t] for t in range(MIGRATE_TYPES)]
                        for order in range(NR_PAGE_ORDERS)],
            "pageblocks": pageblocks,
            "pgalloc": counts[0],
            "numa": [counts[1 + i] for i in range(NR_VM_NUMA_EVENT_ITEMS)],
            "pcp": self.pcp_stat(index),
            "nr_reserved_highatomic": z.nr_reserved_highatomic,
        }

    def pcp_stat(self, int index):
        """
        List a zone's per-CPU lists: a dict of cpu, count and high (pages) for each CPU.

        Threads that last ran on the same CPU are shown as one.
        """
        cdef pcp_stat* stats
        cdef int i
        self.zone_at(index)
        stats = <pcp_stat*>PyMem_Calloc(1 + self.m.nr_cpu_ids, sizeof(pcp_stat))
        if stats == NULL:
            raise MemoryError
        try:
            sum_pcp_stats(self.m, index, stats)
            return [{"cpu": i - 1, "count": stats[i].count, "high": stats[i].high}
                    for i in range(1 + self.m.nr_cpu_ids) if stats[i].threads]
        finally:
            PyMem_Free(stats)

    def events(self):
        """Count machine-wide events: a dict from the names of EVENT_NAMES to ints."""
        cdef uint64_t counts[NR_VM_EVENT_ITEMS]
        self.alive()
        sum_vm_events(self.m, counts)
        return {EVENT_NAMES[i]: counts[i] for i in range(len(EVENT_NAMES))}

    def frame_stat(self, int nid):
        """
        Count a node's frames by use, in pages: a dict of anon, anon_huge (of
        anon), shmem, file, dirty (of file), mapped (of shmem and file), mlocked (of
        anon and shmem), mlocked_file, active (of anon), active_file, table (page tables), slab
        and slab_reclaimable.

        It walks the node's struct pages: about a nanosecond a frame in use.
        """
        cdef frame_stat found
        self.alive()
        if not 0 <= nid < self.m.nr_nodes:
            raise ValueError(f"no node {nid}")
        count_frames(self.m, nid, &found)
        return {"anon": found.anon, "anon_huge": found.anon_huge, "shmem": found.shmem,
                "file": found.file, "dirty": found.dirty, "mapped": found.mapped,
                "mlocked": found.mlocked, "mlocked_file": found.mlocked_file,
                "active": found.active, "active_file": found.active_file,
                "table": found.table, "slab": found.slab,
                "slab_reclaimable": found.slab_reclaimable}

    def zone_info(self, int index):
        """
        Describe a zone.

        :return: dict: start_pfn, spanned_pages, present_pages, managed_pages, free_pages,
            watermark (4), lowmem_reserve (4), batch, high_min, high_max.
        """
        cdef zone* z = self.zone_at(index)
        return {
            "start_pfn": z.start_pfn,
            "spanned_pages": z.spanned_pages,
            "present_pages": z.present_pages,
            "managed_pages": z.managed_pages,
            "free_pages": z.free_pages,
            "watermark": [z.watermark[i] for i in range(NR_WMARK)],
            "lowmem_reserve": [z.lowmem_reserve[i] for i in range(MAX_NR_ZONES)],
            "batch": z.batch,
            "high_min": z.high_min,
            "high_max": z.high_max,
        }

    def free_pages_of(self, int index):
        """Count the free pages of a zone, per-CPU lists not included."""
        return self.zone_at(index).free_pages

    def watermark_ok(self, int index, unsigned int order, uint64_t mark, int highest_zone,
                     unsigned int alloc_flags):
        """
        Say whether an allocation may take from a zone now.

        Compare mm/page_alloc.c:__zone_watermark_ok().

        :param index: nid * 4 + kind of zone.
        :param order: log2 of the pages wanted.
        :param mark: free pages that have to stay, before the reserves.
        :param highest_zone: the highest kind of zone that the caller may use.
        :param alloc_flags: ALLOC_* bits of buddy.pxd.
        """
        cdef zone* z = self.zone_at(index)
        if order > MAX_PAGE_ORDER or not 0 <= highest_zone < MAX_NR_ZONES:
            raise ValueError(f"order {order}, highest zone {highest_zone}")
        take_back_for(z, order)
        return zone_watermark_ok(z, order, mark, highest_zone, alloc_flags, z.free_pages)

    cdef zone* zone_at(self, int index) except NULL:
        self.alive()
        if not 0 <= index < self.m.nr_zones:
            raise ValueError(f"no zone {index}")
        return &self.m.zones[index]

    def drain_all_pages(self):
        """
        Empty the per-CPU lists of every thread into the free areas.

        Compare mm/page_alloc.c:drain_all_pages().
        """
        self.enter()
        self.busy += 1
        with nogil:
            drain_all_pages(self.m)
        self.busy -= 1

    # ---- contexts ----

    def enter_atomic(self):
        """Begin a stretch of the calling thread in which nothing may sleep; they nest."""
        self.enter()
        get_cpu_area(self.m).atomic_depth += 1
        self.atomic_contexts += 1

    def leave_atomic(self):
        """End what enter_atomic began, and do what was put off to the end of the outermost."""
        cdef cpu_area* area
        if self.m == NULL or self.generation != fork_generation:
            return
        area = get_cpu_area(self.m)
        area.atomic_depth -= 1
        self.atomic_contexts -= 1
        if self.after_atomic is not None and area.atomic_depth == 0:
            self.after_atomic()


cdef class AtomicContext:
    """
    A stretch of the calling thread in which nothing may sleep.

    Compiled, so that no signal comes between what begins it and what is sure to end it.

    :param core: the machine's.
    """

    cdef MachineCore core

    def __cinit__(self, MachineCore core not None):
        self.core = core

    def __enter__(self):
        self.core.enter_atomic()

    def __exit__(self, *exc):
        self.core.leave_atomic()


# ---- construction -----------------------------------------------------------

# One block holds the control structures: machine, nodes, zones, zonelists, the CPU map, the
# counters of ended threads and the pageblocks' migratetypes.  It is not inherited over
# os.fork, and is not simulated memory.
cdef machine* build(MachineCore core, uint64_t direct_map, uint64_t vmemmap, nodes, zones,
                    zonelists, cpu_to_node, unsigned int options) except NULL:
    cdef int nr_nodes = len(nodes)
    cdef int nr_zones = nr_nodes * MAX_NR_ZONES
    cdef uint64_t max_pfn = max([row[3] + row[4] for row in nodes], default=0)
    cdef uint64_t lists = <uint64_t>nr_nodes * 2 * MAX_NR_ZONES
    cdef uint64_t list_slots = lists * (nr_zones + 1)
    cdef uint64_t blocks = 0
    cdef char* at
    cdef machine* m
    cdef zone* z
    cdef zone** slot
    cdef uint8_t* pageblock
    cdef page_run* runs
    cdef page_run** run_at
    cdef uint64_t of_zone
    cdef int i
    if not 0 < nr_nodes <= MAX_NUMNODES:
        raise ValueError(f"{nr_nodes} nodes: a machine has 1 to {MAX_NUMNODES}")
    for _start, spanned in zones:
        blocks += (spanned >> PAGEBLOCK_ORDER) + 2
    core.control_bytes = (
        sizeof(machine) + nr_nodes * sizeof(node) + nr_zones * sizeof(zone)
        + lists * sizeof(void*) + list_slots * sizeof(void*) + 8 * len(cpu_to_node)
        + nr_zones * (1 + NR_VM_NUMA_EVENT_ITEMS) * sizeof(uint64_t) + blocks + 64
        + blocks * (sizeof(void*) + 2 * sizeof(page_run)))
    at = <char*>mmap(NULL, core.control_bytes, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
    if at == MAP_FAILED:
        raise HostError(errno, f"mmap of {core.control_bytes} bytes: "
                               f"{strerror(errno).decode()}; raise the address-space limit")
    madvise(at, core.control_bytes, MADV_DONTFORK)
    m = <machine*>at
    at += sizeof(machine)
    m.direct_map = direct_map
    m.vmemmap = <page*>vmemmap
    m.max_pfn = max_pfn
    m.nr_nodes = nr_nodes
    m.nr_zones = nr_zones
    m.options = options
    m.numa = nr_nodes > 1
    m.nr_cpu_ids = len(cpu_to_node)

    m.nodes = <node*>at
    at += nr_nodes * sizeof(node)
    for i, row in enumerate(nodes):
        m.nodes[i].nid = i
        (m.nodes[i].host_node, m.nodes[i].emulated, m.nodes[i].nr_cpus, m.nodes[i].start_pfn,
         m.nodes[i].present_pages, m.nodes[i].memmap_pfn, m.nodes[i].memmap_pages) = row
        m.nodes[i].spanned_pages = m.nodes[i].present_pages

    m.zones = <zone*>at
    at += nr_zones * sizeof(zone)
    m.zonelists = <zone***>at
    at += lists * sizeof(void*)
    slot = <zone**>at
    at += list_slots * sizeof(void*)
    i = 0
    for by_reach in zonelists:
        for by_highest in by_reach:
            for indexes in by_highest:
                m.zonelists[i] = slot
                i += 1
                for index in indexes:
                    slot[0] = &m.zones[<int>index]
                    slot += 1
                slot += 1               # NULL ends the list
    m.zone_events = <uint64_t*>at
    at += nr_zones * (1 + NR_VM_NUMA_EVENT_ITEMS) * sizeof(uint64_t)
    m.cpu_to_node = <int32_t*>at
    at += 8 * len(cpu_to_node)
    for i, nid in enumerate(cpu_to_node):
        m.cpu_to_node[i] = nid

    # Twice as many runs as pageblocks: one that was taken back is still in the host's tables.
    runs = <page_run*>at
    at += blocks * 2 * sizeof(page_run)
    run_at = <page_run**>at
    at += blocks * sizeof(void*)
    pageblock = <uint8_t*>at
    for i, (start, spanned) in enumerate(zones):
        z = &m.zones[i]
        z.machine = m
        z.index = i
        z.nid = i // MAX_NR_ZONES
        z.kind = i % MAX_NR_ZONES
        z.start_pfn = start
        z.spanned_pages = z.present_pages = spanned
        z.managed_pages = spanned - overlap(&m.nodes[z.nid], start, spanned)
        z.pageblock = pageblock
        z.pageblock_start = z.start_pfn >> PAGEBLOCK_ORDER
        of_zone = (spanned >> PAGEBLOCK_ORDER) + 2
        memset(pageblock, MIGRATE_MOVABLE, of_zone)
        pageblock += of_zone
        z.run_at = run_at
        run_at += of_zone
        z.fresh_runs = runs
        runs += 2 * of_zone
        z.end_of_runs = runs
        init_zone(z)
    return m


# Frames of the node's struct page array that lie in a range.
cdef uint64_t overlap(const node* n, uint64_t start, uint64_t pages) noexcept:
    cdef uint64_t low = max(n.memmap_pfn, start)
    cdef uint64_t high = min(n.memmap_pfn + n.memmap_pages, start + pages)
    return high - low if high > low else 0


# Write the struct pages of a node and free its memory into the zones.
cdef void boot_node(machine* m, node* n) noexcept nogil:
    cdef uint64_t pfn
    cdef uint64_t end = n.memmap_pfn + n.memmap_pages
    cdef page* p
    cdef zone* z
    cdef int i
    for i in range(MAX_NR_ZONES):
        z = m.zones + n.nid * MAX_NR_ZONES + i
        for pfn in range(z.start_pfn, z.start_pfn + z.spanned_pages):
            p = pfn_to_page(m, pfn)
            memset(p, 0, sizeof(page))
            p.flags = <uint64_t>z.index << PAGE_ZONE_SHIFT
            p.counts.word = COUNTS_FREE
            p.kind.word = PAGE_TAIL
            if n.memmap_pfn <= pfn < end:
                p.flags |= <uint64_t>1 << PG_reserved
                p.counts.word = COUNTS_NEW
                p.kind.word = PAGE_RESERVED
        if z.spanned_pages == 0:
            continue
        free_boot_range(z, z.start_pfn, min(max(n.memmap_pfn, z.start_pfn),
                                            z.start_pfn + z.spanned_pages))
        free_boot_range(z, min(max(end, z.start_pfn), z.start_pfn + z.spanned_pages),
                        z.start_pfn + z.spanned_pages)
