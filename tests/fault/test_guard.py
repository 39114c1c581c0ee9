"""Forbidden raw accesses: never fatal, raised once, by API.md's three rules."""

from __future__ import annotations


def test_guard_reports_each_kind(child) -> None:
    child("""
    with one_process("16M") as (machine, p):
        ro = p.mmap(None, PAGE, PROT_READ, ANON)
        none = p.mmap(ro - 5 * PAGE, PAGE, PROT_NONE, ANON)
        x, y, z = (array(p, a, PAGE) for a in (ro, none, ro + PAGE))
        cases = [
            ("read-only", lambda: x.__setitem__(3, 1), ro + 24, "write", SEGV_ACCERR),
            ("none, load", lambda: y[0], none, "read", SEGV_ACCERR),
            ("none, store", lambda: y.__setitem__(0, 1), none, "write", SEGV_ACCERR),
            ("no VMA, load", lambda: z[0], ro + PAGE, "read", SEGV_MAPERR),
            ("no VMA, store", lambda: z.__setitem__(1, 1), ro + PAGE + 8, "write", SEGV_MAPERR),
        ]
        for name, access, addr, kind, code in cases:
            for again in range(2):          # after the report the next access faults again
                try:
                    with p.guard():
                        access()
                except SegmentationFault as error:
                    found = (error.address, error.access, error.code, error.pid)
                    assert found == (addr, kind, code, p.pid), (name, found)
                else:
                    raise AssertionError(name)
        assert x[3] == 0 and p.read(ro, PAGE) == bytes(PAGE)
        with p.guard():
            x[0]                            # allowed
        machine.check()
        del x, y, z
    """)


def test_a_forbidden_store_reaches_no_frame(child) -> None:
    """Not the page's own frame, nor a sharer's; what may be read is still read right."""
    child("""
    with one_process("16M") as (machine, p):
        a = p.mmap(None, 4 * PAGE, RW, ANON)
        p.write(a, b"abcd" * PAGE)
        p.munmap(a + PAGE, PAGE)
        # The same frames, read-only: fork, then look through the direct map.
        c = p.fork()
        x = array(c, a, 4 * PAGE, np.uint8)
        frame = pte(p, a).decoded["pfn"]
        def store():
            with c.guard():
                x[PAGE:PAGE + 16] = 7      # in the hole
        raises(SegmentationFault, store)
        assert p.read(a, PAGE) == b"abcd" * 1024
        r = p.mmap(None, PAGE, PROT_READ, ANON)
        y = array(p, r, PAGE, np.uint8)
        assert y[0] == 0                   # the zero page
        def scribble():
            with p.guard():
                y[:] = 9
                assert y[5] == 9           # the scratch page took it
        raises(SegmentationFault, scribble)
        assert not y.any() and p.read(r, PAGE) == bytes(PAGE)
        zero = array(c, c.mmap(None, PAGE, RW, ANON), PAGE)
        assert not zero.any()              # everybody's zero page is still zero
        machine.check()
        del x, y, zero
    """)


def test_many_forbidden_pages_are_one_report(child) -> None:
    child("""
    with one_process("16M") as (machine, p):
        a = p.mmap(None, PAGE, RW, ANON)
        x = array(p, a - 2000 * PAGE, 2001 * PAGE)
        def store():
            with p.guard():
                x[:] = 1
        error = raises(SegmentationFault, store)
        assert error.address == a - 2000 * PAGE and error.code == SEGV_MAPERR
        assert x[2000 * 512] == 1           # the legitimate part was stored
        with p.guard():
            pass                            # raised once
        with open("/proc/self/maps") as f:
            assert sum(1 for _ in f) < 1000
        machine.check()
        del x
    """)


def test_next_call_raises_before_anything_changes(child) -> None:
    child("""
    def work():
        x[0] = 1
        try:
            p.mmap(None, PAGE, RW, ANON)
        except SegmentationFault as error:
            found.append((error.address, len(p.vmas)))
        p.mmap(None, PAGE, RW, ANON)        # once
        found.append(len(p.vmas))
    with one_process("16M") as (machine, p):
        hole = p.mm.high - 4 * PAGE
        x = array(p, hole, PAGE)
        found = []
        t = threading.Thread(target=work)
        t.start(); t.join()
        assert found == [(hole, 0), 1], found
        def look():
            x[8] = 1
            found.append(raises(SegmentationFault, lambda: machine.vmstat).address)
            machine.vmstat
        t = threading.Thread(target=look)
        t.start(); t.join()
        assert found[2:] == [hole + 64], found
        def allocate():
            page = machine.get_zeroed_page(GFP_KERNEL)
            for call in (lambda: machine.get_free_pages(GFP_KERNEL, 0),
                         lambda: machine.free_page(page)):
                x[16] = 1
                found.append(raises(SegmentationFault, call).address)
            machine.free_page(page)         # still there to be freed
        t = threading.Thread(target=allocate)
        t.start(); t.join()
        assert found[3:] == [hole + 128] * 2, found
        del x
    """)


def test_every_call_raises_what_is_pending(child) -> None:
    """In a thread, where nothing else would: each call, once, and it did nothing."""
    child("""
    with Machine(nodes=2, memory="16M") as machine:
        p = machine.spawn()
        q = p.fork()
        hole = p.mm.high - 4 * PAGE
        x = array(p, hole, PAGE)
        node, zone = machine.nodes[0], machine.nodes[0].zones[0]
        page = machine.alloc_pages(GFP.KERNEL, 0)
        vmstat, procfs, sysfs, sysctl = (
            machine.vmstat, machine.procfs, machine.sysfs, machine.sysctl)
        a, machine_va_0 = p.mmap(None, PAGE, RW, ANON), machine.va(0)
        calls = {
            "drain_all_pages": machine.drain_all_pages,
            "check": machine.check,
            "hoststat": lambda: machine.hoststat,
            "vmstat": lambda: machine.vmstat,
            "vmstat item": lambda: vmstat["pgfault"],
            "vmstat all": lambda: dict(vmstat),
            "procfs": lambda: machine.procfs,
            "procfs item": lambda: procfs["/proc/zoneinfo"],
            "procfs paths": procfs.paths,
            "procfs set": lambda: procfs.__setitem__("/proc/sys/vm/min_free_kbytes", "77"),
            "sysfs item": lambda: sysfs["/sys/devices/system/node/node0/distance"],
            "sysctl get": lambda: sysctl["vm.min_free_kbytes"],
            "sysctl set": lambda: sysctl.__setitem__("vm.min_free_kbytes", 77),
            "sysctl del": lambda: sysctl.__delitem__("vm.min_free_kbytes"),
            "node.free_pages": lambda: node.free_pages,
            "node.stat": lambda: node.stat,
            "zone.free_pages": lambda: zone.free_pages,
            "zone.watermark": lambda: zone.watermark,
            "zone.lowmem_reserve": lambda: zone.lowmem_reserve,
            "zone.free_area": lambda: zone.free_area,
            "zone.free_area_by_type": lambda: zone.free_area_by_type,
            "page.refcount": lambda: page.refcount,
            "page.put": page.put,
            "alloc_pages": lambda: machine.alloc_pages(GFP.KERNEL, 0),
            "alloc_pages_bulk": lambda: machine.alloc_pages_bulk(GFP.KERNEL, 2),
            "free_page": lambda: machine.free_page(page),
            "view": lambda: machine.view(page.address, 1),
            "va": lambda: machine.va(0), "pa": lambda: machine.pa(machine_va_0),
            "virt_to_page": lambda: machine.virt_to_page(machine_va_0),
            "pfn_to_page": lambda: machine.pfn_to_page(0),
            "atomic_context": lambda: machine.atomic_context().__enter__(),
            "processes": lambda: machine.processes,
            "spawn": machine.spawn,
            "close": machine.close,
            "enter": machine.__enter__,
            "fork": p.fork, "vmas": lambda: p.vmas, "rss": lambda: p.rss, "guard": p.guard,
            "exit": p.exit, "wait": p.wait, "read": lambda: p.read(a, 1),
            "read nothing": lambda: p.read(a, 0), "write": lambda: p.write(a, b""),
            "munmap": lambda: p.munmap(a, PAGE), "walk": lambda: p.walk(a),
            "find_vma": lambda: p.find_vma(a), "another process": lambda: q.rss,
        }
        def state():
            machine.drain_all_pages()
            return (node.free_pages, sysctl["vm.min_free_kbytes"], sorted(machine.processes),
                    p.vmas, page.refcount)
        def work():
            before = state()
            for name, call in calls.items():
                x[0] = 1
                try:
                    call()
                except SegmentationFault as error:
                    assert error.address == hole, name
                else:
                    silent.append(name)
                    raises(SegmentationFault, lambda: machine.vmstat)
            assert state() == before
        silent = []
        t = threading.Thread(target=work)
        threading.excepthook = lambda args: silent.append(args)
        t.start(); t.join()
        assert not silent, silent
        del x
    """)


def test_the_text_of_an_error_raises_nothing(child) -> None:
    """Not what is pending, nor that the machine is gone: whoever prints an error has enough."""
    child("""
    def work():
        x[0] = 1
        found.append(str(error))
        found.append(raises(SegmentationFault, lambda: machine.vmstat).address)
    with one_process("16M") as (machine, p):
        hole = p.mm.high - 4 * PAGE
        x = array(p, hole, PAGE)
        def eat():
            while True:
                machine.alloc_pages(GFP.KERNEL, 10)
        error, late = raises(OutOfMemory, eat), raises(OutOfMemory, eat)
        found = []
        t = threading.Thread(target=work)
        t.start(); t.join()
        assert "Mem-Info" in found[0] and found[1] == hole, found
        del x
    assert str(late).startswith("page allocation failure: order:10")
    assert str(late).endswith("(no report: this machine is closed)"), str(late)
    assert str(late) == str(late)
    """)


def test_what_ends_the_program_gets_out_of_a_guard(child) -> None:
    child("""
    with one_process("16M") as (machine, p):
        hole = p.mm.high - 4 * PAGE
        x = array(p, hole, PAGE)
        def leave(error):
            with p.guard():
                try:
                    x[0] = 1
                    raise ZeroDivisionError
                except ZeroDivisionError:
                    raise error
        for kind in (KeyboardInterrupt, SystemExit, GeneratorExit):
            error = raises(kind, leave, kind())
            report = error.__context__.__context__
            assert isinstance(error.__context__, ZeroDivisionError)
            assert isinstance(report, SegmentationFault) and report.address == hole
            machine.vmstat                  # it was reported, and is not again
        error = raises(SegmentationFault, leave, ValueError())
        assert isinstance(error.__context__, ValueError)
        # Who starts tests in the background may have it ignored.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        def interrupted():
            with p.guard():
                x[0] = 1
                signal.raise_signal(signal.SIGINT)
        assert isinstance(raises(KeyboardInterrupt, interrupted).__context__, SegmentationFault)
        del x
    """)


def test_a_knot_of_contexts_gets_out_too(child) -> None:
    child("""
    with one_process("16M") as (machine, p):
        x = array(p, p.mm.high - 4 * PAGE, PAGE)
        def leave():
            with p.guard():
                x[0] = 1
                a, b = KeyboardInterrupt("a"), ValueError("b")
                a.__context__, b.__context__ = b, a
                raise a
        assert raises(KeyboardInterrupt, leave).args == ("a",)
        machine.vmstat
        del x
    """)


def test_threads_may_share_a_guard(child) -> None:
    child("""
    def work(i):
        with guard:
            inside.wait()
            if i == 0:
                x[0] = 1
            left[i].wait()
            if i == 1:
                x[PAGE // 8] = 1
        done.append(i)
    def run(i):
        try:
            work(i)
        except SegmentationFault as error:
            reports[i] = error.address - hole
    with one_process("16M") as (machine, p):
        hole = p.mm.high - 4 * PAGE
        x = array(p, hole, 2 * PAGE)
        guard, inside = p.guard(), threading.Barrier(2)
        left, done, reports = [threading.Event(), threading.Event()], [], {}
        threads = [threading.Thread(target=run, args=(i,)) for i in range(2)]
        for t in threads:
            t.start()
        for i in (0, 1):            # that entered in whichever order
            left[i].set()
            threads[i].join()
        assert reports == {0: 0, 1: PAGE}, reports
        del x
    """)


def test_main_thread_is_interrupted(child) -> None:
    child("""
    with one_process("16M") as (machine, p):
        hole = p.mm.high - 4 * PAGE
        x = array(p, hole, PAGE)
        try:
            x[0] = 1
            for _ in range(1000):
                pass
        except SegmentationFault as error:
            assert error.address == hole
        else:
            raise AssertionError("not interrupted")
        p.mmap(None, PAGE, RW, ANON)
        del x
    """)


def test_threads_keep_their_reports_apart(child) -> None:
    child("""
    def work(i):
        barrier.wait()
        for turn in range(20):
            try:
                with p.guard():
                    views[i][turn] = 1
                    barrier.wait()
            except SegmentationFault as error:
                found[i].append(error.address)
    with one_process("16M") as (machine, p):
        low = p.mm.high - 64 * PAGE
        views = [array(p, low + i * PAGE, PAGE) for i in range(3)]
        found = [[], [], []]
        barrier = threading.Barrier(3)
        threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
        for t in threads: t.start()
        for t in threads: t.join()
        for i in range(3):
            assert found[i] == [low + i * PAGE + 8 * t for t in range(20)], found[i]
        with p.guard():
            pass
        machine.check()
        views.clear()
    """)


def test_a_thread_unknown_to_python_reports_to_the_open_guard(child) -> None:
    child("""
    from realmem._bench.fault_loops import store_in_new_thread
    with one_process("16M") as (machine, p):
        hole = p.mm.high - 4 * PAGE
        v = p.view(hole, PAGE)
        where = p.host_address(hole)
        def store():
            with p.guard():
                store_in_new_thread(where, 1)
        assert raises(SegmentationFault, store).address == hole
        try:
            store_in_new_thread(where + 8, 1)       # else to the main thread
            for _ in range(1000):
                pass
        except SegmentationFault as error:
            assert error.address == hole + 8
        else:
            raise AssertionError("not reported")
        v.release()
    """)


def test_other_guards_do_not_take_it(child) -> None:
    child("""
    with Machine(nodes=1, memory="16M") as machine:
        p, q = machine.spawn("p"), machine.spawn("q")
        x = array(p, p.mm.high - PAGE, PAGE)
        def both():
            with p.guard():
                with q.guard():
                    x[0] = 1
                raise_here.append(1)
        raise_here = []
        assert raises(SegmentationFault, both).pid == p.pid
        assert raise_here == [1]
        del x
    """)


def test_raw_fault_without_a_frame_is_out_of_memory(child) -> None:
    child("""
    with one_process("8M") as (machine, p):
        machine.sysctl["vm.overcommit_memory"] = 1
        a, x = mapped(p, 4096 * PAGE)
        def store():
            with p.guard():
                x[::512] = 1
        error = raises(rm.OutOfMemory, store)
        assert (error.order, error.gfp, error.node) == (0, GFP.HIGHUSER_MOVABLE, None)
        lines = str(error).splitlines()
        assert "write fault at" in lines[0] and lines[1] == "Mem-Info:", lines
        assert lines[2].startswith("Node 0 DMA free:"), lines
        by_software = raises(OutOfMemory, p.touch, a, 4096 * PAGE, write=True)
        assert str(by_software).splitlines()[1:] == lines[1:], str(by_software)
        rss = p.rss
        assert 0 < rss < 4096
        machine.check()
        p.munmap(a, 4000 * PAGE)
        with p.guard():
            x[-512] = 5                     # the next access tries again
        assert x[-512] == 5
        machine.check()
        del x
    """)


def test_views_outlive_processes_and_machines(child) -> None:
    child("""
    machine = Machine(nodes=1, memory="16M")
    with machine:
        p = machine.spawn()
        a, x = mapped(p, PAGE)
        x[0] = 1
        raises(BufferError, machine.close)
        guard = p.guard()
        p.exit()
        def load():
            with guard:
                x[0]
        error = raises(SegmentationFault, load)
        assert (error.address, error.code) == (a, SEGV_MAPERR)
        for call in (p.fork, p.exit, p.guard, lambda: p.view(a, 1), lambda: p.mmap(0, 1, 3, 34),
                     lambda: p.rss, lambda: p.vmas, lambda: p.walk(a), lambda: p.read(a, 1)):
            raises(ProcessLookupError, call)
        q = machine.spawn()
        assert q.host_address(a) != x.ctypes.data       # its window is not reused
        b = q.mmap(None, PAGE, RW, ANON)
        y = array(q, b, PAGE)
        y[0] = 2
    for view, addr in ((x, a), (y, b)):
        try:
            view[1] = 1
            for _ in range(1000):
                pass
        except SegmentationFault as error:
            assert (error.address, error.access, error.code) == (addr + 8, "write", SEGV_MAPERR)
        else:
            raise AssertionError("not reported")
    raises(ValueError, q.mmap, None, PAGE, RW, ANON)
    raises(ValueError, machine.spawn)
    """)


def test_machine_nobody_closed(child) -> None:
    child("""
    def use():
        machine = Machine(nodes=1, memory="16M")
        p = machine.spawn()
        a, x = mapped(p, PAGE)
        x[0] = 1
        return x
    x = use()
    gc.collect()
    del x
    gc.collect()
    with Machine(nodes=1, memory="16M") as machine:
        machine.spawn().fork()
        machine.check()
    """)


def test_a_report_that_is_interrupted_comes_later(child) -> None:
    """What a signal's handler raises while the exception is made does not lose the report."""
    child("""
    from realmem._core import faults
    def work():
        x[3] = 1
        faults.SegmentationFault = interrupted
        raises(KeyboardInterrupt, lambda: machine.vmstat)
        faults.SegmentationFault = SegmentationFault
        found.append(raises(SegmentationFault, lambda: machine.vmstat).address)
        machine.vmstat                  # once
    def interrupted(*args):
        raise KeyboardInterrupt
    with one_process("16M") as (machine, p):
        hole = p.mm.high - 4 * PAGE
        x = array(p, hole, PAGE)
        found = []
        t = threading.Thread(target=work)
        t.start(); t.join()
        assert found == [hole + 24], found
        del x
    """)


def test_a_forbidden_store_at_the_hosts_limit(child) -> None:
    """The page that takes the store needs host VMAs, too: room is made for it."""
    child("""
    with open("/proc/sys/vm/max_map_count") as f:
        limit = int(f.read())
    if limit > 1 << 18:
        raise SystemExit                    # would take long, and much memory
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
    libc.mprotect.argtypes = libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    with one_process("16M") as (machine, p):
        a, x = mapped(p, 64 * PAGE)
        x[::512] = range(64)
        p.mprotect(a, 32 * PAGE, PROT_READ)
        length = 2 * limit * PAGE
        at = libc.mmap(None, length, 0, 0x4022, -1, 0)      # MAP_NORESERVE
        i = 1
        while libc.mprotect(at + i * PAGE, PAGE, 1) == 0:
            i += 2
        kinds = []
        for i in (3, 9, 27):
            try:
                with p.guard():
                    x[i * 512] = 7
            except SegmentationFault as error:
                kinds.append((error.address - a, error.code))
        libc.munmap(at, length)
        assert kinds == [(i * PAGE, 2) for i in (3, 9, 27)], kinds
        x[512 * 40] = 41
        assert x[::512].tolist() == [*range(40), 41, *range(41, 64)]
        machine.check()
        del x
    """)
