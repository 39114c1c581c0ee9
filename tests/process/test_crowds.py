"""Many processes, long chains of forks, a process of very many VMAs."""

from __future__ import annotations

import pytest

CROWD = """
    with Machine(nodes=1, memory="192M") as machine:
        free = None
        for turn in range(2):
            first = machine.spawn()
            a, x = mapped(first, 8 * PAGE)
            x[::512] = np.arange(8) + 1000
            crowd = [first]
            # A third of them alone, the rest born of those that there are.
            rng = np.random.default_rng(turn)
            for i in range(1, COUNT):
                if i % 3 == 0:
                    one = machine.spawn(f"p{i}")
                    assert one.mmap(a, 8 * PAGE, RW, ANON | MAP_FIXED) == a
                    one.write(a, np.repeat(np.arange(8) + 1000, 512).tobytes())
                else:
                    one = crowd[rng.integers(len(crowd))].fork()
                crowd.append(one)
            assert len(machine.processes) == COUNT
            for i, one in enumerate(crowd):
                y = array(one, a, 8 * PAGE)
                y[i % 8 * 512] = i
                assert (y[::512] == [i if j == i % 8 else 1000 + j for j in range(8)]).sum() >= 1
                del y
            machine.check()
            for i, one in enumerate(crowd):
                # What was stored after it was born is not its own.
                got = np.frombuffer(one.read(a, 8 * PAGE), np.uint64)[::512]
                assert got[i % 8] == i, (i, got)
                assert all(word == 1000 + j for j, word in enumerate(got) if j != i % 8), (i, got)
            del x, got
            for one in rng.permutation(np.array(crowd, dtype=object)):
                one.exit()
            assert not machine.processes
            machine.check()
            left = free_pages(machine)
            assert free is None or left == free, (left, free)
            free = left
        assert machine.hoststat["host_vmas"] == 0
"""
CHAIN = """
    with one_process("96M") as (machine, p):
        n = 64
        free = free_pages(machine)
        a, x = mapped(p, n * PAGE)
        shared = p.mmap(None, n * PAGE, RW, MAP_SHARED | MAP_ANONYMOUS)
        model = [np.zeros(n, np.uint64)]
        rng = np.random.default_rng(4)
        chain = [p]
        x[0] = model[0][0] = 1
        seen = np.zeros(n, np.uint64)               # what all see of the shared memory
        for level in range(DEPTH):
            one = chain[-1]
            y, mine = array(one, a, n * PAGE), model[-1]
            z = array(one, shared, n * PAGE)
            for page in rng.integers(0, n, 9):
                y[page * 512] = mine[page] = level * 1000 + page
                z[page * 512] = seen[page] = level * 7 + page
            chain.append(one.fork())
            model.append(mine.copy())
            for back in rng.integers(0, len(chain), 3):     # ancestors go on storing
                page = rng.integers(n)
                word = int(rng.integers(1, 2**60))
                array(chain[back], a, n * PAGE)[page * 512] = model[back][page] = word
            one = int(rng.integers(len(chain)))
            page = int(rng.integers(n))
            chain[one].write(a + page * PAGE, bytes(8))
            model[one][page] = 0
            if level % 10 == 9:
                machine.check()
        def compare():
            for one, mine in zip(chain, model):
                assert (np.frombuffer(one.read(a, n * PAGE), np.uint64)[::512] == mine).all()
                assert (np.frombuffer(one.read(shared, n * PAGE), np.uint64)[::512] == seen).all()
                assert (array(one, a, n * PAGE)[::512] == mine).all()
        compare()
        page = machine.pfn_to_page(pte(p, a).decoded["pfn"])
        assert (p.pid, a) in page.mappings and page.mapcount == len(page.mappings)
        del x, y, z, page
        while len(chain) > 1:                       # from the middle outwards
            at = len(chain) // 2
            chain.pop(at).exit()
            model.pop(at)
            if len(chain) % 10 == 0:
                compare()
                machine.check()
        compare()
        machine.check()
"""
MANY_VMAS = """
    import bisect, random, time
    with one_process("256M") as (machine, p):
        machine.sysctl["vm.max_map_count"] = 1 << 20
        rng = random.Random(6)
        n = COUNT
        a = p.mmap(None, 2 * n * PAGE, PROT_NONE, ANON | MAP_NORESERVE)
        p.munmap(a, 2 * n * PAGE)
        slots = list(range(n))
        rng.shuffle(slots)
        for i in slots:                             # in random order, a hole behind each
            p.mmap(a + 2 * i * PAGE, PAGE, RW, ANON | MAP_FIXED)
        assert len(p.vmas) == n
        machine.check()
        model = {i * 2: RW for i in range(n)}       # page: rights
        values = {}
        for turn in range(TURNS):
            page = rng.randrange(2 * n)
            length = rng.randint(1, 3)
            pages = range(page, min(page + length, 2 * n))
            at, size = a + page * PAGE, len(pages) * PAGE
            what = rng.randrange(6)
            if what == 0:
                p.mmap(at, size, RW, ANON | MAP_FIXED)
                model.update(dict.fromkeys(pages, RW))
                for one in pages: values.pop(one, None)
            elif what == 1:
                p.munmap(at, size)
                for one in pages: model.pop(one, None); values.pop(one, None)
            elif what == 2:
                prot = rng.choice([PROT_READ, RW, PROT_NONE])
                failed = None
                try:
                    p.mprotect(at, size, prot)
                except OSError as error:
                    failed = error.errno
                for one in pages:
                    if one not in model:
                        assert failed == 12, (turn, failed)
                        break
                    model[one] = prot
                else:
                    assert failed is None, (turn, failed)
            elif what == 3:
                if model.get(page) == RW:
                    values[page] = rng.randrange(256)
                    p.view(at, 1)[0] = values[page]
                else:
                    raises(SegmentationFault, p.write, at, b"x")
            elif what == 4:
                vma = p.find_vma(at)
                if page in model:
                    assert vma.start <= at < vma.end and vma.prot == model[page]
                else:
                    assert vma is None or vma.start > at
            elif model.get(page):
                assert p.read(at, 1)[0] == values.get(page, 0)
            if turn % (TURNS // 3) == 0:
                machine.check()
        flat = {}
        for vma in p.vmas:
            assert vma.start < vma.end
            for at in range(vma.start, vma.end, PAGE):
                flat[(at - a) // PAGE] = vma.prot
        assert flat == model
        c = p.fork()
        assert len(c.vmas) == len(p.vmas)
        for page in rng.sample(sorted(values), min(200, len(values))):
            if model[page]:
                assert c.read(a + page * PAGE, 1)[0] == values[page]
        machine.check()
        c.exit()
        print(f"{len(p.vmas)} VMAs")
        p.munmap(a, 2 * n * PAGE)
        assert p.vmas == [] and p.rss == 0
        machine.check()
"""


def test_hundreds_of_processes(child) -> None:
    child("    COUNT = 300" + CROWD)


def test_fork_chain(child) -> None:
    """Fifty deep, with stores at each level and to what is shared."""
    child("    DEPTH = 50" + CHAIN)


def test_thousands_of_vmas(child) -> None:
    child("    COUNT, TURNS = 9_000, 3_000" + MANY_VMAS)


@pytest.mark.slow
def test_a_thousand_processes(child) -> None:
    child("    COUNT = 1_000" + CROWD)


@pytest.mark.slow
def test_a_hundred_thousand_vmas(child, soak_factor) -> None:
    if soak_factor < 10:
        pytest.skip("takes a minute: with make soak")
    print(child("    COUNT, TURNS = 100_000, 30_000" + MANY_VMAS, timeout=900).stdout)


def test_a_fork_is_charged_vma_by_vma(child) -> None:
    """More than there is in all, but no single VMA: mode 0 lets it pass, mode 2 does not."""
    child("""
    import errno
    with one_process("64M") as (machine, p):
        places = [p.mmap(None, 40 << 20, RW, ANON)]
        places.append(p.mmap(places[0] - (41 << 20), 40 << 20, RW, ANON | MAP_FIXED))
        p.write(places[1], b"here")
        def committed():
            return machine.procfs["/proc/meminfo"].split("Committed_AS:")[1].split()[0]
        before = committed()
        assert len(p.vmas) == 2
        c = p.fork()
        assert c.read(places[1], 4) == b"here" and int(committed()) == 2 * int(before)
        c.exit()
        p.wait()
        assert committed() == before
        p.munmap(places[0], 40 << 20)
        p.mprotect(places[1], PAGE, PROT_READ)          # two VMAs again: one may be charged
        before = committed()
        machine.sysctl["vm.overcommit_memory"] = 2
        machine.sysctl["vm.overcommit_ratio"] = 80
        error = raises(OSError, p.fork)
        assert error.errno == errno.ENOMEM
        assert committed() == before, (committed(), before)
        assert list(machine.processes) == [p.pid] and not p.children
        machine.check()
    """)
