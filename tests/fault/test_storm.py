"""Invariants 6 and 7 under storms: no lost store, no late fill, every frame comes back."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.storm

STORM = """
    import time
    from realmem._bench.fault_loops import stop_storm, storm

    def run(seconds, pages, disturb, threads=2, memory="64M", **options):
        with one_process(memory, **options) as (machine, p):
            a = p.mmap(None, pages * PAGE, RW, ANON)
            before = free_pages(machine)
            at = p.host_address(a)
            results = []
            stop_storm(False)
            workers = [
                threading.Thread(target=lambda w=w: results.append(storm(at, pages, w)))
                for w in range(threads)
            ]
            for t in workers: t.start()
            turns = 0
            try:
                deadline = time.monotonic() + seconds
                while time.monotonic() < deadline or turns < 4:
                    disturb(machine, p, a, pages, turns)
                    turns += 1
            finally:
                stop_storm()
                for t in workers: t.join()
            lost = [r[0] for r in results]
            rounds = [r[1] for r in results]
            assert lost == [0] * threads, (lost, rounds, turns)
            assert min(rounds) > 0, rounds
            machine.check()
            if options.get("swap"):
                assert machine.vmstat["pswpout"] > 0 and machine.vmstat["pswpin"] > 0
            data = np.frombuffer(p.read(a, pages * PAGE), dtype=np.uint64).reshape(pages, 512)
            by_word = sorted(int(data[0, w]) for w in range(threads))
            assert by_word == sorted(rounds), (by_word, rounds)
            assert all((data[:, w] == data[0, w]).all() for w in range(threads))
            p.munmap(a, pages * PAGE)
            machine.check()
            assert p.rss == 0
            for child in p.children:
                p.wait()
            comes_back(machine, before)
"""


# A third of the memory that 2,000 pages and their copies take, and swap on.
SWAPPING = {"memory": "5M", "swap": 64 << 20}


@pytest.mark.parametrize(
    "pages, options",
    [(64, {"window": "1G"}), (700, {"window": "64G"}), (2000, {"window": "1G", **SWAPPING})],
    ids=["64 pages", "700 pages", "2000 pages swapping"],
)
def test_stores_while_another_thread_forks_and_breaks(child, pages, options, soak_factor) -> None:
    """Two threads store; a third forks, the child breaks some copies by raw stores and exits."""
    child(
        STORM
        + f"""
    def disturb(machine, p, a, pages, turn):
        c = p.fork()
        y = array(c, a, pages * PAGE)
        snapshot = y[::512].copy()
        for i in range(turn % 7, pages, 7):
            y[i * 512 + 100] = turn
        assert (y[::512] == snapshot).all()     # the parent's stores do not show in the child
        if turn % 5 == 0:
            g = c.fork()
            y[300] = 1
            g.exit()
        del y
        c.exit()
        p.wait()

    run({1.5 * soak_factor}, {pages}, disturb, **{options!r})
    """
    )


def test_stores_while_the_software_mmu_writes_and_pages_are_flushed(child, soak_factor) -> None:
    """The software MMU's words, stored while others fork and flush, are not lost either."""
    child(
        STORM
        + f"""
    def soft():
        turn = 0
        while not stop_soft:
            turn += 1
            for i in range(0, 100, 3):
                at = a0 + i * PAGE + 2048
                if turn > 1 and p0.read(at, 8) != (turn - 1).to_bytes(8, "little"):
                    lost_soft.append((turn, i))
                p0.write(at, turn.to_bytes(8, "little"))
        turns_soft.append(turn)

    def disturb(machine, p, a, pages, turn):
        global p0, a0, writer
        if writer is None:
            p0, a0, writer = p, a, threading.Thread(target=soft)
            writer.start()
        c = p.fork()
        before = c.read(a, pages * PAGE)
        i = turn % pages
        c.touch(a, pages * PAGE, write=bool(turn & 1))
        p.mm.core.flush(a + i * PAGE, a + min(i + 9, pages) * PAGE)
        assert c.read(a, pages * PAGE) == before        # nobody's store shows in the child
        c.exit()
        p.wait()

    stop_soft, lost_soft, turns_soft, writer = [], [], [], None
    def all_turns(*args):
        try:
            disturb(*args)
        except BaseException:
            stop_soft.append(1)
            raise
        if time.monotonic() > end - 0.2:
            stop_soft.append(1)
            writer.join()
    end = time.monotonic() + {2.0 * soak_factor}
    run({2.0 * soak_factor}, 100, all_turns)
    assert turns_soft[0] > 3 and not lost_soft, (turns_soft, lost_soft[:5])
    """
    )


def test_stores_with_a_tiny_budget_of_host_vmas(child, soak_factor) -> None:
    """With room for 150 host VMAs, 400 pages in 400 places keep flushing each other."""
    child(
        STORM
        + f"""
    def disturb(machine, p, a, pages, turn):
        c = p.fork()
        c.touch(a, pages * PAGE, write=bool(turn & 1))
        y = array(c, a, pages * PAGE)
        y[50::1024] = 1
        from realmem._core.space import host_vmas
        assert host_vmas() < 400, host_vmas()
        del y
        c.exit()
        p.wait()

    run({1.0 * soak_factor}, 400, disturb, host_vmas=150)
    """
    )


@pytest.mark.parametrize("pages, options", [(64, {}), (2000, SWAPPING)], ids=["64", "swapping"])
def test_mapping_and_unmapping_beside_stores(child, pages, options, soak_factor) -> None:
    """Neighbours come and go, and what is fresh is zero, while others store."""
    child(
        STORM
        + f"""
    def disturb(machine, p, a, pages, turn):
        b = p.mmap(None, 40 * PAGE, RW, ANON)
        y = array(p, b, 40 * PAGE)
        assert not y.any()
        y[:] = 2**64 - 1
        p.munmap(b + 10 * PAGE, 5 * PAGE)
        p.munmap(b, 40 * PAGE)
        def late():
            with p.guard():
                y[0] = 1
        assert raises(SegmentationFault, late).code == SEGV_MAPERR
        del y

    run({1.0 * soak_factor}, {pages}, disturb, **{options!r})
    """
    )


def test_processes_storm_beside_each_other(child, soak_factor) -> None:
    """Threads that each have a process of their own fork, store, exit; nothing leaks."""
    child(f"""
    import time
    from realmem._bench.fault_loops import stop_storm, storm
    def work(i):
        rng = np.random.default_rng(i)
        try:
            while time.monotonic() < deadline or turns[i] < 4:
                p = machine.spawn(f"p{{i}}")
                n = int(rng.integers(1, 40))
                a, x = mapped(p, n * PAGE)
                assert not x.any()
                x[:] = i + 1
                c = p.fork()
                y = array(c, a, n * PAGE)
                x[::512] = 100 + i
                assert (y == i + 1).all()
                y[:] = 50 + i
                assert (x[1::512] == i + 1).all() and (x[::512] == 100 + i).all()
                del x
                p.exit()
                assert (y == 50 + i).all()
                del y
                c.exit()
                turns[i] += 1
        except BaseException as error:
            errors.append(error)
            raise
    with Machine(nodes=1, memory="64M", window="1G") as machine:
        machine.spawn().exit()
        before = free_pages(machine)
        turns, errors = [0, 0, 0], []
        deadline = time.monotonic() + {1.5 * soak_factor}
        threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
        for t in threads: t.start()
        while any(t.is_alive() for t in threads):
            machine.check()
            time.sleep(0.02)
        for t in threads: t.join()
        assert not errors and min(turns) > 3, (errors, turns)
        machine.check()
        assert free_pages(machine) == before
    """)


def test_at_the_hosts_limit_of_vmas(child) -> None:
    """Somebody else takes every host VMA: faults are served all the same, contents right."""
    child("""
    import mmap
    limit = int(open("/proc/sys/vm/max_map_count").read())
    if limit > 70000:
        print("limit too high to reach")
        sys.exit(0)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
    libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    with one_process("64M", window="1G") as (machine, p):
        n = 3000
        a, x = mapped(p, n * PAGE)
        order = np.random.default_rng(5).permutation(n)
        early = set(order[:1500].tolist())
        for i in order[:1500]:
            x[i * 512] = i + 1
        c = p.fork()
        hog = libc.mmap(None, limit * PAGE, 0, 0x4022, -1, 0)
        taken = 0
        while libc.mprotect(hog + 2 * taken * PAGE, PAGE, 1) == 0:
            taken += 1
        for i in order:
            x[i * 512] = i + 1
        d = None
        try:
            d = p.fork()            # its window is a host VMA of its own: may be refused
        except HostError:
            machine.check()
        for i in order[::3]:
            x[i * 512] = i + 2
        y = array(c, a, n * PAGE)
        ok = all(y[i * 512] == (i + 1 if i in early else 0) for i in order)
        ok2 = all(x[i * 512] == i + 2 for i in order[::3])
        p.munmap(a, 1000 * PAGE)
        del y
        c.exit()
        if d is not None:
            d.exit()
        libc.munmap(hog, limit * PAGE)
        assert ok and ok2 and taken > 10000, (ok, ok2, taken)
        machine.check()
        del x
    """)
