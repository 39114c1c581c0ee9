"""Accesses that nobody should make: told clearly, and nothing is lost by them."""

from __future__ import annotations


def test_accesses_out_of_the_window(child) -> None:
    child("""
    with one_process("16M", window="1G") as (machine, p):
        a, x = mapped(p, 4 * PAGE)
        x[:] = 3
        for at, n in ((p.mm.low - 1, 2), (p.mm.high - 1, 2), (0, 1), (TASK_SIZE, 1),
                      (2**63, 1), (2**64 - 1, 1), (p.mm.low, 2**62)):
            error = raises(ValueError, p.view, at, n)
            assert "window" in str(error), error
        raises(ValueError, p.host_address, p.mm.low - 1)
        raises((ValueError, OverflowError), p.view, 2**64, 1)
        raises((ValueError, OverflowError), p.view, -1, 1)
        raises((ValueError, OverflowError), p.view, a, -1)
        assert len(p.view(a, 0)) == 0
        for at in (p.mm.low - PAGE, p.mm.high, TASK_SIZE - 1, TASK_SIZE, 0, 2**64 - 4096,
                   0xFFFF_8880_0000_0000):
            for access in (lambda: p.read(at, 1), lambda: p.write(at, b"x"),
                           lambda: p.touch(at, 1), lambda: p.fill(at, 1, 0),
                           lambda: p.access([at])):
                error = raises(SegmentationFault, access)
                assert (error.code, error.done) == (SEGV_MAPERR, 0), error
                assert error.address == at, error
        error = raises(SegmentationFault, p.read, a, 5 * PAGE)
        assert (error.address, error.done) == (a + 4 * PAGE, 4 * PAGE)
        error = raises(SegmentationFault, p.read, 2**64 - 8, 16)     # it would wrap
        assert error.address == 2**64 - 8
        assert (x == 3).all() and p.rss == 4
        machine.check()
        del x
    """)


def test_accesses_to_exited_processes(child) -> None:
    child("""
    import errno
    with one_process("16M", window="1G") as (machine, p):
        a, x = mapped(p, 4 * PAGE)
        x[:] = 3
        late = p.view(a, PAGE)
        c = p.fork()
        p.exit()
        calls = [lambda: p.read(a, 1), lambda: p.write(a, b"x"), lambda: p.touch(a, 1),
                 lambda: p.fill(a, 1, 0), lambda: p.access([a]), lambda: p.view(a, 1),
                 lambda: p.host_address(a), lambda: p.walk(a), lambda: p.vmas,
                 lambda: p.find_vma(a), lambda: p.mmap(None, PAGE, RW, ANON),
                 lambda: p.munmap(a, PAGE), lambda: p.mprotect(a, PAGE, PROT_READ),
                 lambda: p.brk(), lambda: p.sbrk(PAGE), lambda: p.mseal(a, PAGE),
                 lambda: p.fork(), lambda: p.exit(), lambda: p.wait(), lambda: p.rss,
                 lambda: p.min_flt, lambda: p.guard(), lambda: p.read(a, 0),
                 lambda: p.populate(a, 1)]
        for i, call in enumerate(calls):
            error = raises(ProcessLookupError, call)
            assert error.errno == errno.ESRCH and str(p.pid) in str(error), (i, error)
        with c.guard():                     # another process's guard: not its fault
            pass
        for access in (lambda: x[0], lambda: x.__setitem__(0, 1), lambda: late[5]):
            try:
                access()
                c.rss
            except SegmentationFault as error:
                assert error.code == SEGV_MAPERR and error.pid == p.pid
            else:
                raise AssertionError("not told")
        assert c.read(a, 8) == b"\\x03" + bytes(7)
        assert machine.processes.keys() == {c.pid}
        machine.check()
        del x
        late.release()
    """)


def test_closed_machines(child) -> None:
    child("""
    machine = Machine(nodes=1, memory="16M", window="1G")
    p = machine.spawn()
    a, x = mapped(p, 4 * PAGE)
    x[:] = 3
    raises(BufferError, machine.close)
    assert (x == 3).all() and p.read(a, 1) == b"\\x03"
    del x
    gc.collect()
    machine.close()
    for call in (lambda: p.read(a, 1), lambda: p.view(a, 1), lambda: p.fork(), lambda: p.exit(),
                 lambda: p.vmas, lambda: p.mmap(None, PAGE, RW, ANON), lambda: p.guard(),
                 lambda: p.walk(a), machine.spawn, machine.check, lambda: p.rss,
                 lambda: p.mprotect(a, PAGE, RW), lambda: p.wait()):
        error = raises(ValueError, call)
        assert "closed" in str(error), error
    with Machine(nodes=1, memory="16M", window="1G") as machine:
        p = machine.spawn()
        a, x = mapped(p, 4 * PAGE)
        x[:] = 3
    with contextlib.suppress(SegmentationFault):
        x[0] = 5                            # its machine has gone: told, and kills nobody
        for _ in range(1000):
            len("the interpreter's next check")
        raise AssertionError("not told")
    with contextlib.suppress(SegmentationFault):
        x[512]
        with Machine(nodes=1, memory="16M", window="1G") as other:
            raise AssertionError("not told")
    with Machine(nodes=1, memory="16M", window="1G") as other:
        q = other.spawn()
        b, y = mapped(q, PAGE)
        y[0] = 1
        assert y[0] == 1 and y.ctypes.data != x.ctypes.data
        other.check()
        del y
    del x
    """)


def test_views_outlive_what_they_cover(child) -> None:
    child("""
    def store(p, x, i, value):
        with p.guard():
            x[i] = value
    with one_process("16M", window="1G") as (machine, p):
        a, x = mapped(p, 8 * PAGE)
        x[::512] = 7
        p.munmap(a + 2 * PAGE, 2 * PAGE)
        for i in (2, 3):
            error = raises(SegmentationFault, store, p, x, i * 512, 1)
            assert (error.address, error.code, error.access) == (
                a + i * PAGE, SEGV_MAPERR, "write")
        assert x[512] == 7 and x[4 * 512] == 7 and p.rss == 6
        assert p.mmap(a + 2 * PAGE, PAGE, RW, ANON | MAP_FIXED) == a + 2 * PAGE
        assert x[2 * 512] == 0              # not what was stored in between
        store(p, x, 2 * 512, 9)
        assert p.read(a + 2 * PAGE, 1) == b"\\x09"
        p.mprotect(a, 2 * PAGE, PROT_NONE)
        error = raises(SegmentationFault, store, p, x, 1, 1)
        assert (error.address, error.code) == (a + 8, SEGV_ACCERR)
        p.mprotect(a, 2 * PAGE, RW)
        assert x[0] == 7 and x[1] == 0
        top = p.sbrk(2 * PAGE)
        y = array(p, top, 2 * PAGE)
        y[:] = 4
        p.sbrk(-PAGE)
        error = raises(SegmentationFault, store, p, y, 512, 1)
        assert (error.address, error.code) == (top + PAGE, SEGV_MAPERR)
        assert (y[:512] == 4).all()
        p.sbrk(PAGE)
        assert (y[512:] == 0).all()
        machine.check()
        del x, y
    """)


def test_host_system_calls_on_window_memory(child) -> None:
    """Without a pin they fail with EFAULT or come back short, no signal comes; nothing is lost."""
    child("""
    import errno, socket, tempfile
    with one_process("16M", window="1G") as (machine, p):
        a, x = mapped(p, 8 * PAGE)
        x[:] = 1
        r, w = os.pipe()
        def fails(call):
            error = raises(OSError, call)
            assert error.errno == errno.EFAULT, error
        # Never touched by a store: nothing is there for the host.
        b = p.mmap(None, 4 * PAGE, RW, ANON)
        os.write(w, b"hello")
        faults = machine.hoststat["sigsegv"]
        fails(lambda: os.readv(r, [p.view(b, 5)]))
        fails(lambda: os.write(w, p.view(b, 5)))
        assert machine.hoststat["sigsegv"] == faults
        assert os.read(r, 5) == b"hello"            # EFAULT took nothing from the pipe
        # Flushed: the same, until a load brings it back.
        p.mm.core.flush(a, a + 8 * PAGE)
        fails(lambda: os.write(w, p.view(a, 16)))
        assert x[0] == 1                            # a fault: now it is there
        assert os.write(w, p.view(a, 16)) == 16 and os.read(r, 16) == b"\\x01" + bytes(7) \\
            + b"\\x01" + bytes(7)
        # In part: short, at the page that is missing.
        with tempfile.TemporaryFile() as file:
            p.mm.core.flush(a, a + 8 * PAGE)
            x[0], x[512]
            got = file.raw.write(p.view(a, 8 * PAGE)) if hasattr(file, "raw") \\
                else os.write(file.fileno(), p.view(a, 8 * PAGE))
            assert got == 2 * PAGE, got
            os.lseek(file.fileno(), 0, os.SEEK_SET)
            p.mm.core.flush(a, a + 8 * PAGE)
            fails(lambda: os.readv(file.fileno(), [p.view(a, PAGE)]))
            x[0] = 2
            assert os.readv(file.fileno(), [p.view(a, PAGE)]) == PAGE
            assert x[0] == 1
        # Write-protected by a fork: the host may read it, and may not write it.
        one, other = socket.socketpair()
        x[:] = 6
        c = p.fork()
        x[0], array(c, a, PAGE)[0]
        one.send(b"changed!")
        fails(lambda: other.recv_into(p.view(a, 8)))
        assert c.read(a, 8) == p.read(a, 8) == b"\\x06" + bytes(7)
        assert os.write(w, p.view(a, 8)) == 8 and os.read(r, 8) == b"\\x06" + bytes(7)
        # Forbidden memory: as the host says, and no report is left.
        p.munmap(a, PAGE)
        fails(lambda: os.write(w, p.view(a, 8)))
        p.rss
        assert c.read(a, 8) == b"\\x06" + bytes(7)
        with p.pin(b, 8, write=True) as view:
            one.send(b"pinned!!")
            assert other.recv_into(view) in (8, 16)
        assert p.read(b, 1) in (b"p", b"c")
        for f in (r, w): os.close(f)
        one.close(); other.close()
        machine.check()
        del x
    """)
