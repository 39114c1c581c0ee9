"""The host's limit on VMAs is a budget: nothing fails at it, and malloc and threads go on."""

from __future__ import annotations

import pytest

THROUGHOUT = """
    import time
    libc = ctypes.CDLL(None, use_errno=True)
    libc.malloc.restype = ctypes.c_void_p
    libc.malloc.argtypes = [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]

    def host_lives(rng=np.random.default_rng(9)):
        # Large blocks are mmapped; a thread takes a stack and its guard.
        blocks = [libc.malloc(int(n)) for n in rng.integers(1 << 18, 1 << 21, 8)]
        assert all(blocks)
        for block in blocks:
            ctypes.memset(block, 1, 4096)
            libc.free(block)
        ran = []
        threads = [threading.Thread(target=ran.append, args=(i,)) for i in range(4)]
        for t in threads: t.start()
        for t in threads: t.join()
        assert len(ran) == 4

    def real_vmas():
        with open("/proc/self/maps") as maps:
            return sum(1 for _ in maps)

    def limit():
        with open("/proc/sys/vm/max_map_count") as f:
            return int(f.read())

    def within_budget(machine):
        counted, real = machine.hoststat["host_vmas"], real_vmas()
        assert counted <= limit() // 2 + 70, counted
        assert real < counted + 1000, (real, counted)       # the rest is the interpreter's
        return real
"""
SCATTERED = """
    n = PAGES
    with one_process(MEMORY) as (machine, p):
        rng = np.random.default_rng(1)
        a, x = mapped(p, n * PAGE)
        order = rng.permutation(n)
        most = 0
        begun = time.perf_counter()
        for part in np.array_split(order, 16):
            x[part * 512] = part + 1
            host_lives()
            most = max(most, within_budget(machine))
        first = time.perf_counter() - begun
        assert machine.hoststat["sigsegv"] >= n * 15 // 16
        again = rng.permutation(n)
        faults, begun = machine.hoststat["sigsegv"], time.perf_counter()
        for part in np.array_split(again, 16):
            assert (x[part * 512] == part + 1).all()
            host_lives()
            most = max(most, within_budget(machine))
        second = time.perf_counter() - begun
        faults = machine.hoststat["sigsegv"] - faults
        got = np.frombuffer(p.read(a, n * PAGE), np.uint64)[::512]
        assert (got == np.arange(1, n + 1, dtype=np.uint64)).all()
        assert p.rss == n
        machine.check()
        print(f"{n} pages, scattered: {first / n * 1e9:.0f} ns a page; second pass "
              f"{second / n * 1e9:.0f} ns a page, {faults} faults; "
              f"at most {most} host VMAs of {limit()}")
        del x
"""
ALTERNATING = """
    n = PAGES
    with one_process(MEMORY) as (machine, p):
        machine.sysctl["vm.max_map_count"] = 1 << 20
        a, x = mapped(p, n * PAGE)
        x[::512] = np.arange(n)
        most, begun = 0, time.perf_counter()
        for i in range(1, n, 2):
            p.mprotect(a + i * PAGE, PAGE, PROT_READ)
            if i % (n // 16) == 1:
                host_lives()
                most = max(most, within_budget(machine))
        made = time.perf_counter() - begun
        assert len(p.vmas) == n, len(p.vmas)
        begun = time.perf_counter()
        assert (x[::512] == np.arange(n)).all()
        x[::1024] += 1                          # those that may be written, every other page
        second = time.perf_counter() - begun
        most = max(most, within_budget(machine))
        host_lives()
        want = np.arange(n)
        want[::2] += 1
        assert (x[::512] == want).all()
        for i in (1, n // 2 + 1 | 1, n - 1):
            error = raises(SegmentationFault, lambda: store(p, x, i))
            assert (error.address, error.code) == (a + i * PAGE, SEGV_ACCERR), i
        data = np.frombuffer(p.read(a, n * PAGE), np.uint64)[::512]
        assert (data == want).all()
        machine.check()
        p.mprotect(a, n * PAGE, RW)             # one again
        assert len(p.vmas) == 1
        x[::512] = 3
        assert (x[::512] == 3).all()
        host_lives()
        machine.check()
        print(f"{n} alternating pages: {made / n * 2e6:.1f} us a call of mprotect; second pass "
              f"{second / n * 1e9:.0f} ns a page; at most {most} host VMAs of {limit()}")
        del x
"""
STORE = """
    def store(p, x, i):
        with p.guard():
            x[i * 512] = 9
"""


def run(child, code: str, pages: int, memory: str, timeout: int = 120) -> str:
    head = f"    PAGES, MEMORY = {pages}, {memory!r}"
    done = child(head + THROUGHOUT + STORE + code, timeout=timeout)
    return str(done.stdout)


def test_scattered_pages(child) -> None:
    """More of them than the host allows VMAs, each a VMA of its own to the host."""
    run(child, SCATTERED, 72_000, "320M")


def test_alternating_protections(child) -> None:
    """More of them than the budget allows."""
    run(child, ALTERNATING, 34_000, "160M")


@pytest.mark.slow
def test_scattered_gibibyte(child, soak_factor) -> None:
    if soak_factor < 10:
        pytest.skip("takes a minute: with make soak")
    print(run(child, SCATTERED, 1 << 18, "1280M", 900))


@pytest.mark.slow
def test_two_hundred_thousand_alternating_pages(child, soak_factor) -> None:
    if soak_factor < 10:
        pytest.skip("takes a minute: with make soak")
    print(run(child, ALTERNATING, 200_000, "900M", 900))


def test_many_processes_share_the_budget(child) -> None:
    """The budget is of the host process: what one process fills, others give up."""
    child(THROUGHOUT + """
    with Machine(nodes=1, memory="96M", host_vmas=3000) as machine:
        rng = np.random.default_rng(2)
        n = 1200
        crowd = [machine.spawn() for _ in range(12)]
        arrays = [mapped(p, n * PAGE)[1] for p in crowd]
        for i, x in enumerate(arrays):
            x[rng.permutation(n) * 512] = i + 1
            assert machine.hoststat["host_vmas"] <= 3000 + 70, machine.hoststat["host_vmas"]
            host_lives()
        for i, x in enumerate(arrays):
            assert (x[::512] == i + 1).all()
            assert machine.hoststat["host_vmas"] <= 3000 + 70, machine.hoststat["host_vmas"]
        assert real_vmas() < 3000 + 1000
        machine.check()
        del x, arrays
    """)
