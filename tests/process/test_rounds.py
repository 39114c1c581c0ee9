"""Rounds of spawn, map, touch, fork, exit leave everything as it was."""

from __future__ import annotations

import pytest

ROUNDS = """
    def real_vmas():
        with open("/proc/self/maps") as maps:
            return sum(1 for _ in maps)

    def resident():
        # Without the machine's own memory, which is shared: kB.
        with open("/proc/self/status") as status:
            return int(next(line for line in status if line.startswith("RssAnon:")).split()[1])

    def descriptors():
        return len(os.listdir("/proc/self/fd"))

    def one_round(machine, rng, i):
        p = machine.spawn(f"round {i}")
        n = int(rng.integers(2, 40))
        a, x = mapped(p, n * PAGE)
        s = p.mmap(None, 4 * PAGE, RW, MAP_SHARED | MAP_ANONYMOUS)
        p.mmap((int(rng.integers(1, 1 << 16)) << 30) + PAGE * 3, 2 * PAGE, RW, ANON | MAP_FIXED)
        x[::512] = i
        p.touch(s, 2 * PAGE, write=True)
        p.sbrk(3 * PAGE)
        p.fill(p.mm.start_brk, 3 * PAGE, 1)
        p.mprotect(a, PAGE, PROT_READ)
        c = p.fork()
        y = array(c, a, n * PAGE)
        y[(n - 1) * 512] = i + 1
        assert x[(n - 1) * 512] == i
        c.touch(s, 4 * PAGE, write=True)
        g = c.fork()
        g.munmap(a, n * PAGE)
        if i % 3:
            c.exit()
            assert p.wait() == (c.pid, 0)
            g.exit()
            p.exit()
        else:
            p.exit()
            g.exit()
            c.exit()

    def forbidden(machine, i):
        p = machine.spawn()
        a, x = mapped(p, PAGE)
        p.mprotect(a, PAGE, PROT_READ)
        with contextlib.suppress(SegmentationFault), p.guard():
            x[0] = i
        p.exit()

    def state(machine):
        gc.collect()
        machine.spawn().exit()                      # windows that views kept go now
        machine.drain_all_pages()
        machine.quicklists.trim()
        slabs = {}
        for name, cache in machine.kmem_caches.items():
            cache.shrink()
            if cache.active_objs or cache.num_slabs:
                slabs[name] = (cache.active_objs, cache.num_slabs)
        return {
            "free": sum(node.free_pages for node in machine.nodes),
            "quicklists": machine.quicklists.pages,
            "slabs": slabs,
            "counted": machine.hoststat["host_vmas"],
            "fds": descriptors(),
            "processes": len(machine.processes),
        }

    with Machine(nodes=1, memory="48M", window=WINDOW) as machine:
        rng = np.random.default_rng(8)
        for i in range(60):                         # what is made once is made
            one_round(machine, rng, i)
            forbidden(machine, i)
        machine.check()                             # what is imported is imported
        before, vmas, rss = state(machine), real_vmas(), resident()
        for i in range(COUNT):
            one_round(machine, rng, i)
            if i % 10 == 0:
                forbidden(machine, i)
            if i % 500 == 250:
                machine.check()
        machine.check()
        after, more, grown = state(machine), real_vmas() - vmas, resident() - rss
        assert after == before, (before, after)
        assert more <= 8, more
        assert grown < 1024 + COUNT // 100, grown
        print(f"{COUNT} rounds: RSS {grown:+} kB, host VMAs {more:+}")
"""


@pytest.mark.parametrize("window", ["1G", "64G"])
def test_hundreds_of_rounds(child, window) -> None:
    child(f"    COUNT, WINDOW = 300, {window!r}" + ROUNDS)


@pytest.mark.slow
def test_ten_thousand_rounds(child, soak_factor) -> None:
    count = int(min(1000 * soak_factor, 10_000))
    print(child(f"    COUNT, WINDOW = {count}, '64G'" + ROUNDS, timeout=900).stdout)
