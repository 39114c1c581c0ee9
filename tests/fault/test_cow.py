"""fork and copy-on-write through real loads and stores."""

from __future__ import annotations


def test_fork_isolates_both_ways(child) -> None:
    child("""
    with one_process("64M") as (machine, p):
        n = 64 * PAGE
        a, x = mapped(p, n)
        x[:] = np.arange(len(x))
        c = p.fork("kid")
        assert (c.name, c.parent, p.children, c.min_flt) == ("kid", p, [c], 0)
        assert c.rss == p.rss == 64
        y = array(c, a, n)
        x[: len(x) // 2] = 1
        y[len(y) // 2 :] = 2
        g = c.fork()
        z = array(g, a, n)
        y[0] = 9
        ref = np.arange(len(x))
        assert (x[: len(x) // 2] == 1).all() and (x[len(x) // 2 :] == ref[len(x) // 2 :]).all()
        assert (y[1 : len(y) // 2] == ref[1 : len(y) // 2]).all() and (y[len(y) // 2 :] == 2).all()
        assert z[0] == 0 and y[0] == 9 and (z[1:] == y[1:]).all()
        machine.check()
        del x, y, z
    """)


def test_last_owner_reuses_its_frame(child) -> None:
    child("""
    with one_process("64M") as (machine, p):
        a, x = mapped(p, 8 * PAGE)
        x[:] = 1
        frames = [pte(p, a + i * PAGE).decoded["pfn"] for i in range(8)]
        c = p.fork()
        shared = machine.pfn_to_page(frames[0])
        assert shared.mapcount == 2 and shared.refcount == 2
        assert "anon_exclusive" not in shared.flags
        assert shared.mappings == [(p.pid, a), (c.pid, a)]
        before = machine.vmstat["pgreuse"] if "pgreuse" in machine.vmstat else None
        x[0] = 2                         # shared: copied, and the copy given to the child
        assert pte(p, a).decoded["pfn"] == frames[0] != pte(c, a).decoded["pfn"]
        assert c.read(a, 8) == (1).to_bytes(8, "little")
        c.exit()
        x[512] = 2                       # sole owner: opened in place
        assert pte(p, a + PAGE).decoded["pfn"] == frames[1]
        assert "anon_exclusive" in machine.pfn_to_page(frames[1]).flags
        if before is not None:
            assert machine.vmstat["pgreuse"] == before + 1
        assert p.wait() == (c.pid, 0)
        machine.check()
        del x
    """)


def test_child_reuses_after_parent_copied(child) -> None:
    # Through the window, so that both have it mapped and the copy is the writer's.
    child("""
    with one_process("64M") as (machine, p):
        a, x = mapped(p, PAGE)
        x[:] = 3
        frame = pte(p, a).decoded["pfn"]
        c = p.fork()
        y = array(c, a, PAGE)
        assert y[1] == 3
        x[0] = 4
        y[0] = 5
        assert pte(c, a).decoded["pfn"] == frame and pte(p, a).decoded["pfn"] != frame
        assert x[0] == 4 and y[0] == 5 and x[1] == y[1] == 3
        machine.check()
        del x, y
    """)


def test_zero_page_after_fork(child) -> None:
    child("""
    with one_process("64M") as (machine, p):
        a, x = mapped(p, 4 * PAGE)
        assert x.sum() == 0
        c = p.fork()
        y = array(c, a, 4 * PAGE)
        assert y.sum() == 0
        y[0] = 1
        x[512] = 1
        assert x[0] == 0 and y[512] == 0 and p.rss == c.rss == 1
        machine.check()
        del x, y
    """)


def test_chains_and_life(child) -> None:
    child("""
    with one_process("64M", window="1G") as (machine, p):
        a = p.mmap(None, 4 * PAGE, RW, ANON)
        line = [p]
        for i in range(30):
            line[-1].write(a, bytes([i]))
            line.append(line[-1].fork(f"g{i}"))
        machine.check()
        assert [q.read(a, 1)[0] for q in line[:-1]] == list(range(30))
        for q in line[1::2]:
            q.exit(3)
        machine.check()
        assert [q.read(a, 1)[0] for q in line[:-1:2]] == list(range(0, 30, 2))
        assert raises(ProcessLookupError, line[1].read, a, 1)
        assert raises(ProcessLookupError, line[1].fork)
        assert p.wait() == (2, 3 << 8)
        orphans = sorted(c.pid for c in p.children)     # children of the dead go to process 1
        assert orphans == [q.pid for q in line[2::2]], orphans
        assert raises(ChildProcessError, line[-1].wait)
        assert set(machine.processes) == {q.pid for q in line[::2]}
    """)


def test_fork_without_frames_leaves_the_parent_whole(child) -> None:
    child("""
    with one_process("8M", window="1G") as (machine, p):
        n = 256 * PAGE
        a = p.mmap(None, 256 << 21, RW, ANON | MAP_NORESERVE)     # a table each
        for i in range(256):
            p.write(a + (i << 21), bytes([i]))
        p.fork().exit()
        before = free_pages(machine)
        hog = machine.alloc_pages_bulk(rm.GFP_KERNEL | rm.GFP.NOWARN, before - 300)
        failed = 0
        kids = []
        try:
            while True:
                kids.append(p.fork())
        except (OSError, MemoryError) as error:
            failed = 1
        assert failed
        machine.check()
        assert all(p.read(a + (i << 21), 1)[0] == i for i in range(256))
        for kid in kids:
            kid.exit()
        for page in hog:
            machine.free_page(page)
        machine.check()
        assert free_pages(machine) == before, (free_pages(machine), before)
    """)
