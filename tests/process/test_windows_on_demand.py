"""Fixed addresses away from the default window: windows made for them, and their host VMAs."""

from __future__ import annotations

import pytest

HOST = """
    GIB = 1 << 30

    def host_vmas_of(p):
        # What /proc/self/maps says of all windows of a process.  The account takes a window's end
        # for an edge where a frame is mapped up to it: the reservation behind it counts, empty.
        count = 0
        with open("/proc/self/maps") as maps:
            lines = [line.split(None, 5) for line in maps]
        lines = [(*(int(x, 16) for x in line[0].split("-")), "memfd" in line[-1])
                 for line in lines]
        for at, n in p.mm.core.windows:
            low = p.host_address(at)
            mine = [line for line in lines if line[0] < low + n and line[1] > low]
            count += len(mine) + mine[0][2] + mine[-1][2]
        return count

    def the_account_holds(*processes):
        for p in processes:
            counted, real = p.mm.core.host_vmas, host_vmas_of(p)
            assert counted == real, (p.pid, counted, real)
"""
PLACES = """
    places = [0x10000, GIB - PAGE * 4, 3 * GIB + 5 * PAGE, 7 << 32, (1 << 39) - PAGE,
              (1 << 39) + GIB, 1 << 40, (1 << 45) + (123 << 20), (1 << 46) - 8 * PAGE,
              TASK_SIZE - 2 * PAGE - 70 * GIB]
"""


def test_ten_places(child) -> None:
    child(HOST + PLACES + """
    with one_process("64M") as (machine, p):
        free = free_pages(machine)
        for i, at in enumerate(places):
            assert p.mmap(at, 2 * PAGE, RW, ANON | MAP_FIXED) == at
            p.write(at, bytes([i]))
            x = array(p, at, 2 * PAGE, np.uint8)
            assert x[0] == i
            x[PAGE] = i + 100               # a real fault
            assert p.read(at + PAGE, 1) == bytes([i + 100])
            the_account_holds(p)
        assert len(p.mm.core.windows) == 10      # two lie in one GiB, one in two
        assert [v.start for v in p.vmas] == sorted(places)
        machine.check()
        c = p.fork()
        for i, at in enumerate(places):
            x, y = array(p, at, 2 * PAGE, np.uint8), array(c, at, 2 * PAGE, np.uint8)
            x[1], y[1] = 7, 8
            assert (x[0], y[0], x[1], y[1], x[PAGE], y[PAGE]) == (i, i, 7, 8, i + 100, i + 100)
        the_account_holds(p, c)
        machine.check()
        for one in (p, c):
            for at in places[::2]:
                one.mm.core.flush(at, at + 2 * PAGE)
            the_account_holds(one)
            one.mm.core.flush(0, TASK_SIZE)
            assert one.mm.core.host_vmas == host_vmas_of(one) == 10
        machine.check()
        for i, at in enumerate(places):
            assert p.read(at, 2) == bytes([i, 7]) and c.read(at, 2) == bytes([i, 8])
            p.munmap(at, PAGE)
        x = array(p, places[3], 2 * PAGE, np.uint8)
        error = raises(SegmentationFault, lambda: guarded(p, lambda: x[0]))
        assert (error.address, error.code) == (places[3], SEGV_MAPERR)
        assert x[PAGE] == 103
        machine.check()
        c.exit()
        the_account_holds(p)
        del x, y
    """.replace("    with one", """    def guarded(p, access):
        with p.guard():
            access()
    with one""", 1))


def test_the_ends_of_the_address_space(child) -> None:
    child(HOST + """
    with one_process("64M") as (machine, p):
        low, high = 0x10000, TASK_SIZE - 3 * PAGE


        assert p.mmap(low, 4 * PAGE, RW, ANON | MAP_FIXED) == low
        assert p.mmap(high, 3 * PAGE, RW, ANON | MAP_FIXED) == high
        raises(OSError, p.mmap, high + PAGE, 3 * PAGE, RW, ANON | MAP_FIXED)
        for at, n in ((low, 4 * PAGE), (high, 3 * PAGE)):
            x = array(p, at, n)
            x[:] = 5
            assert (x == 5).all() and p.read(at, n) == np.full(n // 8, 5, np.uint64).tobytes()
            the_account_holds(p)
        raises(SegmentationFault, p.read, TASK_SIZE - 1, 2)
        raises(SegmentationFault, p.read, TASK_SIZE, 1)
        raises(ValueError, p.view, TASK_SIZE - PAGE, 1 << 31)
        machine.check()
        c = p.fork()
        y = array(c, high, 3 * PAGE)
        y[:] = 6
        assert (x == 5).all() and (y == 6).all()
        del x, y
        machine.check()
    """)


def test_vmas_across_the_ends_of_windows(child) -> None:
    """One VMA over the end of an earlier window and a new one, and over the default window's."""
    child(HOST + """
    with one_process("64M") as (machine, p):
        rng = np.random.default_rng(3)
        a = 5 * GIB - 8 * PAGE
        p.mmap(a, 4 * PAGE, RW, ANON | MAP_FIXED)              # a window of its own below
        p.write(a, b"first")
        n = 16 * PAGE
        assert p.mmap(a, n, RW, ANON | MAP_FIXED) == a         # over its end
        b = p.mm.low - 8 * PAGE                                # over the default window's start
        assert p.mmap(b, n, RW, ANON | MAP_FIXED) == b
        assert len(p.vmas) == 2
        for at in (a, b):
            data = rng.integers(0, 256, n, dtype=np.uint8).tobytes()
            p.write(at, data)                       # software: no window matters
            raises(ValueError, p.view, at, n)       # hardware: two windows are two views
            halves = array(p, at, n // 2, np.uint8), array(p, at + n // 2, n // 2, np.uint8)
            assert b"".join(h.tobytes() for h in halves) == data
            for h in halves:
                h += 1
            want = (np.frombuffer(data, np.uint8) + np.uint8(1)).tobytes()
            assert p.read(at, n) == want
            the_account_holds(p)
            p.mprotect(at + 3 * PAGE, n - 6 * PAGE, PROT_READ)
            the_account_holds(p)
            assert p.read(at, n) == want
            error = raises(SegmentationFault, p.fill, at, n, 0)
            assert error.done == 3 * PAGE
            p.mprotect(at, n, RW)
            c = p.fork()
            p.fill(at + n // 2 - 10, 20, 1)
            the_account_holds(p, c)
            assert c.read(at + PAGE * 3, n - PAGE * 3) == want[PAGE * 3:]
            halves[1][0] = 9
            the_account_holds(p, c)
            p.mm.core.flush(at + 7 * PAGE, at + 9 * PAGE)
            the_account_holds(p, c)
            machine.check()
            c.exit()
            assert p.wait()[0] == c.pid
        p.munmap(a + 6 * PAGE, 4 * PAGE)
        p.munmap(b + 6 * PAGE, 4 * PAGE)
        the_account_holds(p)
        machine.check()
        del halves, h
    """)


def test_random_places_with_forks_and_flushes(child) -> None:
    child(HOST + """
    import random
    rng = random.Random(5)
    with one_process("64M") as (machine, p):
        live = [p]
        model = {p.pid: {}}                         # page address: byte
        gibs = [rng.randrange(TASK_SIZE >> 30) << 30 for _ in range(12)]
        def place():
            base = rng.choice(gibs) + rng.choice([0, GIB - 4 * PAGE, 77 << 20])
            return base + rng.randrange(-3, 4) * PAGE
        for turn in range(600):
            one = rng.choice(live)
            mine = model[one.pid]
            at, n = place(), rng.randint(1, 6)
            if not 0x10000 <= at < TASK_SIZE - 16 * PAGE:
                continue
            pages = [at + i * PAGE for i in range(n)]
            what = rng.random()
            if what < 0.35:
                one.mmap(at, n * PAGE, RW, ANON | MAP_FIXED)
                mine.update(dict.fromkeys(pages, 0))
            elif what < 0.45:
                one.munmap(at, n * PAGE)
                for page in pages:
                    mine.pop(page, None)
            elif what < 0.8 and mine:
                for page in rng.sample(sorted(mine), min(4, len(mine))):
                    mine[page] = rng.randrange(256)
                    if rng.random() < 0.5:
                        one.view(page, 1)[0] = mine[page]
                    else:
                        one.write(page, bytes([mine[page]]))
            elif what < 0.85:
                one.mm.core.flush(at & -GIB, (at & -GIB) + GIB)
            elif what < 0.92 and len(live) < 6:
                c = one.fork()
                live.append(c)
                model[c.pid] = dict(mine)
            elif len(live) > 2 and what > 0.95 and one is not p:
                live.remove(one)
                one.exit()
                del model[one.pid]
            if turn % 40 == 0:
                the_account_holds(*live)
                machine.check()
        for one in live:
            assert all(one.read(page, 1)[0] == byte for page, byte in model[one.pid].items())
            assert all(one.view(page, 1)[0] == byte for page, byte in model[one.pid].items())
            assert sum(len(range(v.start, v.end, PAGE)) for v in one.vmas) == len(model[one.pid])
        the_account_holds(*live)
        machine.check()
    """)


def test_a_window_is_not_given_again_while_a_view_of_it_lives(child) -> None:
    child(HOST + """
    with one_process("32M") as (machine, p):
        a = 9 * GIB
        p.mmap(a, PAGE, RW, ANON | MAP_FIXED)
        x = array(p, a, PAGE)
        x[0] = 1
        p.exit()
        for i in range(30):
            q = machine.spawn()
            q.mmap(a, PAGE, RW, ANON | MAP_FIXED)
            y = array(q, a, PAGE)
            y[0] = 2
            assert y.ctypes.data != x.ctypes.data
            q.exit()
            del y
        q = machine.spawn()
        error = raises(SegmentationFault, lambda: touch(q, x))
        assert (error.address, error.code) == (a, SEGV_MAPERR)
        machine.check()
        del x
    """.replace("    with one", """    def touch(q, x):
        x[0]
        q.rss
    with one""", 1))


@pytest.mark.slow
def test_the_host_refuses_address_space(child) -> None:
    """More windows than a process may have: ENOMEM, and nothing changed."""
    child(HOST + """
    with one_process("64M", window="1G") as (machine, p):
        made = 0
        try:
            for i in range(2000):
                p.mmap(GIB * (2 * i + 1), PAGE, RW, ANON | MAP_FIXED)
                made += 1
        except OSError as error:
            import errno
            assert error.errno == errno.ENOMEM
        assert 1000 < made < 1024, made
        assert len(p.vmas) == made
        p.touch(GIB * 1001, PAGE, write=True)
        machine.check()
        c = p.fork()
        assert c.read(GIB * 1001, 1) == bytes(1) and len(c.vmas) == made
        c.exit()
        machine.check()
    """)
