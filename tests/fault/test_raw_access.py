"""Raw loads and stores through a view: served, isolated, given back."""

from __future__ import annotations

from pathlib import Path


def test_numpy_stores_and_loads_many_pages(child) -> None:
    child("""
    with one_process("64M") as (machine, p):
        n = 300 * PAGE
        x = array(p, p.mmap(None, n, RW, ANON), n)
        data = np.random.default_rng(1).integers(0, 2**63, len(x)).astype(np.uint64)
        x[:] = data
        assert (x == data).all()
        assert p.rss == 300 and p.min_flt == 300, (p.rss, p.min_flt)
        x.sort()
        assert (x == np.sort(data)).all()
        machine.check()
        del x
    """)


def test_fresh_memory_reads_as_the_one_zero_page(child) -> None:
    child("""
    with one_process("64M") as (machine, p):
        a, x = mapped(p, 600 * PAGE)
        assert x.sum() == 0 and p.rss == 0 and p.min_flt == 600
        pfns = {pte(p, a + i * PAGE).decoded["pfn"] for i in range(600)}
        assert len(pfns) == 1
        flags = pte(p, a).decoded["flags"]
        assert "special" in flags and "rw" not in flags
        x[512 * 7] = 1                  # a store takes a frame of its own, the others stay
        assert p.rss == 1 and x.sum() == 1
        machine.check()
        del x
    """)


def test_reused_frames_come_back_zeroed(child) -> None:
    child("""
    with one_process("16M") as (machine, p):
        n = 1000 * PAGE
        for turn in range(4):
            a, x = mapped(p, n)
            if turn % 2:
                assert x.sum() == 0         # the zero page first, or a frame at once
            x[::512] = 0
            assert x.sum() == 0
            x[:] = 2**64 - 1
            del x
            p.munmap(a, n)
            assert p.rss == 0
        machine.check()
    """)


def test_munmap_splits_and_zaps(child) -> None:
    child("""
    with one_process("16M") as (machine, p):
        a, x = mapped(p, 3 * PAGE)
        x[:] = 5
        p.munmap(a + PAGE, 1)
        assert [(v.start, v.end) for v in p.vmas] == [(a, a + PAGE), (a + 2 * PAGE, a + 3 * PAGE)]
        assert x[0] == 5 and x[1024] == 5 and p.rss == 2
        def load():
            with p.guard():
                x[512]
        error = raises(SegmentationFault, load)
        assert (error.address, error.access, error.code) == (a + PAGE, "read", SEGV_MAPERR)
        machine.check()
        del x
    """)


def test_frames_and_host_memory_come_back_on_exit(child) -> None:
    child("""
    def maps():
        with open("/proc/self/maps") as f:
            return sum(1 for _ in f)
    with Machine(nodes=1, memory="64M") as machine:
        for turn in range(6):
            if turn == 1:               # the first turn brings what stays, such as blocks
                before, host = free_pages(machine), maps()
            p = machine.spawn()
            a, x = mapped(p, 500 * PAGE)
            x[:] = 1
            kids = [p.fork() for _ in range(3)]
            for kid in kids:
                array(kid, a, PAGE)[0] = 2
            x[0] = 3
            machine.check()
            for kid in kids:
                kid.exit()
                p.wait()
            del x
            p.exit()
            machine.check()
        assert free_pages(machine) == before, (free_pages(machine), before)
        assert maps() <= host + 4, (maps(), host)
        assert not machine.processes
    """)


def test_walk_agrees_with_the_frames(child) -> None:
    """The entry's frame holds, through the direct map, what the view stored."""
    child("""
    with one_process("64M") as (machine, p):
        a, x = mapped(p, 20 * PAGE)
        for i in range(20):
            x[i * 512 + i] = 1000 + i
        for i in range(20):
            at = a + i * PAGE
            steps = p.walk(at)
            assert [s.level for s in steps] == ["pgd", "pud", "pmd", "pte"]
            for step, down in zip(steps, steps[1:]):
                assert down.address >> 12 == step.decoded["pfn"]
                where = machine.va(step.address)
                assert ctypes.c_uint64.from_address(where).value == step.raw
                assert "table" in machine.pfn_to_page(step.decoded["pfn"]).flags
            pfn = steps[-1].decoded["pfn"]
            where = machine.va(pfn * PAGE) + i * 8
            assert ctypes.c_uint64.from_address(where).value == 1000 + i
            page = machine.pfn_to_page(pfn)
            assert page.mapcount == 1 and page.refcount == 1 and "anon" in page.flags
            assert page.mappings == [(p.pid, at)]
        # The kernel half: the direct map, in 2 MiB entries, the same in every process.
        q = machine.spawn("other")
        low = 0xffff888000000000 + (pfn << 12)
        steps = p.walk(low)
        assert [s.level for s in steps] == ["pgd", "pud", "pmd"]
        assert steps[-1].decoded["pfn"] == pfn & ~511 and "huge" in steps[-1].decoded["flags"]
        assert p.walk(low)[1:] == q.walk(low)[1:]
        del x
    """)


def test_software_and_hardware_see_the_same(child) -> None:
    child("""
    with one_process("64M") as (machine, p):
        n = 50 * PAGE
        a = p.mmap(None, n, RW, ANON)
        data = bytes(np.random.default_rng(2).integers(0, 256, n, dtype=np.uint8))
        p.write(a + 100, data[: n - 100])
        assert machine.hoststat["map_fill"] == 0
        x = array(p, a, n, np.uint8)
        assert bytes(x[100:]) == data[: n - 100] and not x[:100].any()
        x[:] = 7
        assert p.read(a, n) == b"\\x07" * n
        kid = p.fork()
        p.write(a, b"parent")           # breaks copy-on-write under the view's mapping
        assert bytes(x[:6]) == b"parent" and kid.read(a, 6) == b"\\x07" * 6
        kid.write(a, b"kid")
        assert kid.read(a, 3) == b"kid" and p.read(a, 6) == b"parent"
        kid.touch(a, n, write=True)
        assert kid.read(a, n) == b"kid" + b"\\x07" * (n - 3)
        error = raises(SegmentationFault, p.write, a + n - 10, b"z" * 20)
        assert error.done == 10 and error.address == a + n and error.code == SEGV_MAPERR
        assert p.read(a + n - 10, 10) == b"z" * 10
        assert raises(SegmentationFault, p.read, 0xffff888000000000, 1).code == SEGV_MAPERR
        r = p.mmap(None, PAGE, PROT_READ, ANON)
        assert raises(SegmentationFault, p.write, r, b"x").code == SEGV_ACCERR
        assert p.read(r, 3) == b"\\0\\0\\0"
        machine.check()
        del x
    """)


def test_system_call_on_unmapped_window_memory_fails(child) -> None:
    """No signal comes when the host kernel meets a page that only our handler could map."""
    child("""
    import errno
    with one_process("16M") as (machine, p):
        a = p.mmap(None, 2 * PAGE, RW, ANON)
        v = p.view(a, 2 * PAGE)
        r, w = os.pipe()
        os.write(w, b"hello")
        error = raises(OSError, os.readv, r, [v])
        assert error.errno == errno.EFAULT, error
        v[:8] = bytes(8)                # faulted in by a store: now it works
        assert os.readv(r, [v[:8]]) == 5 and bytes(v[:5]) == b"hello"
        v.release()
    """)


def test_host_mappings_agree_with_the_entries(child) -> None:
    """What an entry says of the host is what /proc/self/maps and pagemap say."""
    child("""
    def host_maps(base, length):
        found = []
        with open("/proc/self/maps") as f:
            for line in f:
                span, perms, offset, *_ = line.split()
                start, end = (int(x, 16) for x in span.split("-"))
                if start < base + length and end > base:
                    found.append((max(start, base), min(end, base + length), perms))
        return found
    def registered():       # with userfaultfd, by host address
        with open("/proc/self/smaps") as f:
            for line in f:
                first, *rest = line.split()
                if "-" in first and ":" not in first:
                    start, end = (int(x, 16) for x in first.split("-"))
                elif first == "VmFlags:" and "ui" in rest:
                    yield from range(start, end, PAGE)
    def opened(at):         # present, and write-protected or not
        pagemap.seek(at // PAGE * 8)
        entry = int.from_bytes(pagemap.read(8), "little")
        return ("r--s" if entry >> 57 & 1 else "rw-s") if entry >> 63 else None
    pagemap = open("/proc/self/pagemap", "rb", buffering=0)
    with pagemap, one_process("64M") as (machine, p):
        n = 700 * PAGE
        a, x = mapped(p, n)
        rng = np.random.default_rng(3)
        for i in rng.permutation(700)[:300]:
            x[i * 512] = i
        for i in rng.permutation(700)[:200]:
            x[i * 512]
        kid = p.fork()
        for i in rng.permutation(700)[:100]:
            x[i * 512] = i
        kid.exit()
        for i in rng.permutation(700)[:100]:
            x[i * 512] = i
        p.munmap(a + 100 * PAGE, 7 * PAGE)
        base = p.host_address(p.mm.low)
        spans = host_maps(base, p.mm.core.length)
        perms = {}
        for start, end, perm in spans:
            if perm != "---p":
                for at in range(start, end, PAGE):
                    perms[at] = perm
        for at in registered():
            perms[at] = opened(at)
        words = {"none": None, "noaccess": "---s", "read": "r--s", "write": "rw-s"}
        for i in range(700):
            step = pte(p, a + i * PAGE)
            host = step.decoded.get("host", "none") if step.level == "pte" else "none"
            found = perms.get(p.host_address(a + i * PAGE))
            assert found == words[host], (i, host, found)
        # A neighbouring reservation may have merged with the window's ends.
        counted = p.mm.core.host_vmas
        assert counted == len(spans), (counted, len(spans))
        machine.check()
        del x
    """)


def test_one_of_two_windows_cannot_be_flushed(child) -> None:
    """It is closed by mprotect; nothing is opened so in the other one, which is bare by then."""
    child(f"""
    sys.path.insert(0, {str(Path(__file__).parents[1])!r})
    from refuse import refuse_clearing
    with one_process("64M", window="1G") as (machine, p):
        n, at = 2 << 20, 1 << 32
        a, x = mapped(p, n)
        p.mmap(at, n, RW, ANON | MAP_FIXED)         # a window of its own
        y = array(p, at, n)
        x[::512] = range(512)
        y[::512] = range(512)
        refuse_clearing(p.host_address(at))
        p.mm.core.flush(at, at + PAGE)              # refused, and so is that of all
        machine.check()
        x[::512] += 1
        y[::512] += 2
        assert np.frombuffer(p.read(a, n), np.uint64)[::512].tolist() == list(range(1, 513))
        assert np.frombuffer(p.read(at, n), np.uint64)[::512].tolist() == list(range(2, 514))
        machine.check()
        del x, y
    """)
