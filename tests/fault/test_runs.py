"""Runs of frames: what raw faults reserve, the host maps at once, and pressure takes back."""

from __future__ import annotations

import pytest

SPANS = """
    HUGE = 1 << 21
    def spans(p):
        base, length, found = p.host_address(p.mm.low), p.mm.core.length, []
        with open("/proc/self/maps") as f:
            for line in f:
                start, end = (int(x, 16) for x in line.split()[0].split("-"))
                if start < base + length and end > base:
                    found.append((max(start, base), min(end, base + length), line.split()[1]))
        return found
    def regions(p, n):
        addr, x = mapped(p, n * HUGE)
        assert addr % HUGE == 0
        return addr, x
    def runs(p):
        return p.mm.core.nr_runs
"""


def test_stores_in_order_open_one_host_vma(child) -> None:
    """Frames follow each other; the host maps them in chunks and moves one edge."""
    child(SPANS + """
    with one_process("64M") as (machine, p):
        a, x = regions(p, 1)
        before = machine.hoststat
        for i in range(512):
            x[i * 512] = i + 1
            assert len(spans(p)) == p.mm.core.host_vmas, i
        assert runs(p) == 1
        after = machine.hoststat
        assert after["sigsegv"] - before["sigsegv"] == 512
        maps = after["map_fill"] - before["map_fill"]
        assert maps < 20, maps                    # 8 chunks, and the pages before the first
        assert after["host_vmas"] - before["host_vmas"] == 2
        frames = [pte(p, a + i * PAGE).decoded["pfn"] for i in range(512)]
        assert frames == list(range(frames[0], frames[0] + 512)) and frames[0] % 512 == 0
        assert [int(v) for v in x[::512]] == list(range(1, 513))
        machine.check()
        p.munmap(a, HUGE)
        assert runs(p) == 0
        machine.check()
    """)


def test_no_page_of_a_run_can_be_reached_before_its_fault(child) -> None:
    """What the host maps without access gives a zeroed frame; what was unmapped, an error."""
    child(SPANS + """
    with one_process("64M") as (machine, p):
        # Frames that say whose they were.
        a, x = regions(p, 4)
        x[:] = 0xDEAD
        p.munmap(a, 4 * HUGE)
        a, x = regions(p, 2)
        for i in list(range(0, 64, 2)) + [300]:
            x[i * 512] = 1
        closed = [s for s in spans(p) if s[2] == "---s"]
        assert closed, spans(p)
        assert not x[1::512][:40:2].any() and not x[300 * 512 + 1:].any()
        x[7 * 512 + 3] = 5
        assert x[7 * 512:8 * 512].sum() == 5
        p.munmap(a + 16 * PAGE, 8 * PAGE)
        p.munmap(a + 100 * PAGE, PAGE)            # never touched
        for i in (16, 17, 23, 100):
            with machine.guard(), contextlib.suppress(SegmentationFault):
                x[i * 512] = 1
                machine.check()
                raise SystemExit(f"page {i} can be stored to")
        assert x[15 * 512:16 * 512].sum() == 0 and x[14 * 512] == 1
        assert len(spans(p)) == p.mm.core.host_vmas
        machine.check()
    """)


@pytest.mark.parametrize("order", [0, 3, 9, 10])
def test_every_free_frame_can_be_allocated(child, order) -> None:
    """What runs have left serves requests of any order, as if there were no runs."""
    child(SPANS + f"""
    def take_all(wanted):
        with one_process("64M") as (machine, p):
            machine._paging.mmu.set_runs(wanted)
            n = 8
            a, x = regions(p, n)
            for i in range(n):
                for j in range(3):
                    x[i * HUGE // 8 + j * 700] = 1
            assert runs(p) == (n if wanted else 0)
            free = free_pages(machine)
            machine.check()
            taken = []
            with contextlib.suppress(OutOfMemory):
                while True:
                    taken.append(machine.alloc_pages(GFP.KERNEL | GFP.MEMALLOC | GFP.NOWARN,
                                                     {order}))
            machine.check()
            stalls = machine.vmstat["allocstall_normal"] + machine.vmstat["allocstall_dma32"]
            for page in taken:
                ctypes.memset(machine.va(page.pfn << 12), 0xEE, PAGE << {order})
            for i in range(n):
                for j in range(3):
                    assert x[i * HUGE // 8 + j * 700] == 1
            left = free_pages(machine)
            if {order} == 0:
                assert left == 0 and len(taken) == free, (left, len(taken), free)
            for page in taken:
                machine.free_pages(page, {order})
            machine.check()
            assert free_pages(machine) == free
            p.exit()
            machine.check()
            return len(taken), free, stalls
    ours, theirs = take_all(True), take_all(False)
    if {order} < 9:       # where the pages in use lie decides how many large blocks are left
        assert ours[0] << {order} >= ours[1] - (24 << {order}), (ours, theirs)
        assert theirs[1] == ours[1], (ours, theirs)
    else:
        assert ours[0] > 0, (ours, theirs)
    """)


def test_a_run_that_was_taken_back_serves_no_more(child) -> None:
    """Later faults in its 2 MiB bring frames of others; what the host had mapped is no way in."""
    child(SPANS + """
    with one_process("64M") as (machine, p):
        a, x = regions(p, 1)
        with machine.guard():                      # which takes frames the first time
            pass
        for i in range(8):
            x[i * 512] = i + 1                     # the chunk is mapped
        taken = []
        with contextlib.suppress(OutOfMemory):
            while True:
                taken.append(machine.alloc_pages(GFP.KERNEL | GFP.MEMALLOC | GFP.NOWARN, 0))
        for page in taken:
            ctypes.memset(machine.va(page.pfn << 12), 0xEE, PAGE)
        with machine.guard(), contextlib.suppress(OutOfMemory, SegmentationFault):
            x[8 * 512] = 9
            machine.check()
            raise SystemExit("there was a frame")
        machine.check()
        for page in taken[:4096]:
            machine.free_pages(page, 0)
        for i in range(8, 512):
            x[i * 512] = i + 1
            assert x[i * 512 + 1] == 0
        assert [int(v) for v in x[::512]] == list(range(1, 513))
        for page in taken[4096:]:
            assert bytes(machine.view(machine.va(page.pfn << 12), PAGE)) == b"\\xee" * PAGE
        assert len(spans(p)) == p.mm.core.host_vmas
        machine.check()
        for page in taken[4096:]:
            machine.free_pages(page, 0)
        machine.check()
    """)


def test_the_budget_holds_with_runs(child) -> None:
    """Scattered stores in many regions: host VMAs stay within the budget, and are counted."""
    child(SPANS + """
    with one_process("128M", host_vmas=200) as (machine, p):
        a, x = regions(p, 12)
        rng = np.random.default_rng(5)
        order = rng.permutation(12 * 512)[:3000]
        for n, i in enumerate(order):
            x[i * 512] = n + 1
            if n % 500 == 0:
                assert len(spans(p)) == p.mm.core.host_vmas
                assert machine.hoststat["host_vmas"] <= 210
                machine.check()
        for n, i in enumerate(order):
            assert x[i * 512] == n + 1
        machine.check()
    """)


def test_other_threads_store_while_chunks_are_mapped(child) -> None:
    """Two threads store to neighbouring pages of the same chunks; no store is lost."""
    child(SPANS + """
    from realmem._bench.fault_loops import touch
    with one_process("256M") as (machine, p):
        for turn in range(6):
            a, x = regions(p, 8)
            at = p.host_address(a)
            orders = [np.arange(k, 8 * 512, 2, dtype=np.uint32) for k in (0, 1)]
            threads = [threading.Thread(target=touch, args=(at, 8 * 256, True, order))
                       for order in orders]
            for t in threads: t.start()
            p.mm.core.flush(a, a + 8 * HUGE)
            for t in threads: t.join()
            for order in orders:
                assert (x[order.astype(np.int64) * 512] == np.arange(1, 8 * 256 + 1)).all()
            machine.check()
            p.munmap(a, 8 * HUGE)
        machine.check()
    """)


def test_a_fork_of_the_host_leaves_no_mapping_behind(child) -> None:
    """While another thread maps chunks, children of os.fork() have nothing of the pool."""
    child(SPANS + """
    from realmem._bench.fault_loops import touch
    with one_process("64M") as (machine, p):
        a, x = regions(p, 4)
        at = p.host_address(a)
        stop = []
        def fault():
            while not stop:
                touch(at, 4 * 512, True, None)
                p.mm.core.flush(a, a + 4 * HUGE)
        t = threading.Thread(target=fault)
        t.start()
        for _ in range(40):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                pid = os.fork()
            if pid == 0:
                with open("/proc/self/maps") as f:
                    os._exit(any("/memfd:realmem" in line for line in f))
            assert os.waitpid(pid, 0)[1] == 0
        stop.append(1)
        t.join()
        machine.check()
    """)
