"""What a caller may do wrong with frames that processes map: refused, and nothing is lost."""

from __future__ import annotations


def test_a_write_from_a_window_does_not_wait_for_itself(child) -> None:
    """Its source faults, and the fault wants the lock that the write holds."""
    child("""
    with one_process("16M") as (machine, p):
        a = p.mmap(None, 64 * PAGE, RW, ANON)
        p.write(a, p.view(a + 16 * PAGE, PAGE))
        p.write(a + 32 * PAGE, b"x" * PAGE)
        p.write(a, p.view(a + 32 * PAGE, PAGE))
        assert p.read(a, PAGE) == b"x" * PAGE
    """)


def test_mapped_frames_and_the_zero_page_are_not_the_callers_to_free(child) -> None:
    child("""
    with one_process("16M") as (machine, p):
        a = p.mmap(None, 4 * PAGE, RW, ANON)
        p.read(a + PAGE, 1)
        zero = machine.pfn_to_page(pte(p, a + PAGE).decoded["pfn"])
        raises(AllocatorError, lambda: machine.free_page(zero))
        p.write(a, b"x")
        c = p.fork()
        page = machine.pfn_to_page(pte(p, a).decoded["pfn"])
        assert (page.refcount, page.mapcount) == (2, 2)
        raises(AllocatorError, lambda: machine.free_page(page))
        raises(AllocatorError, page.put)
        page.get()                          # but a reference of one's own
        page.put()
        machine.check()
        p.exit()
        assert c.read(a, 1) == b"x"
        machine.check()
    """)


def test_absurd_lengths_end_at_the_first_bad_address(child) -> None:
    child("""
    with one_process("16M") as (machine, p):
        a = p.mmap(None, 4 * PAGE, RW, ANON)
        for length in (5 * PAGE, 2**40, 2**63):
            error = raises(SegmentationFault, lambda: p.read(a, length))
            assert (error.address, error.done) == (a + 4 * PAGE, 4 * PAGE)
    """)


def test_system_calls_are_refused_in_atomic_context(child) -> None:
    child("""
    with one_process("16M") as (machine, p):
        with machine.atomic_context():
            raises(AtomicContextError, lambda: p.mmap(None, PAGE, RW, ANON))
        p.mmap(None, PAGE, RW, ANON)
    """)


def test_a_fork_inside_a_guard_ends_it_quietly(child) -> None:
    child("""
    with one_process("16M") as (machine, p):
        with p.guard():
            pid = os.fork()
        if pid == 0:
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
    """)


def test_pages_come_from_machines_only(child) -> None:
    child("""
    import realmem as rm
    raises(TypeError, rm.Page)
    orphan = rm.Page.__new__(rm.Page)
    for name in ("flags", "address", "owner", "mappings", "node", "refcount"):
        raises(ValueError, lambda: getattr(orphan, name))
    with Machine(nodes=1, memory="16M") as machine:
        pages = machine.alloc_pages_bulk(GFP.KERNEL, 4)
        raises(ValueError, lambda: pages.pfns.__setitem__(0, 2**50))
        machine.free_pages_bulk(pages)

    class Closing:
        def __index__(self):
            machine.close()
            return PAGE

    machine = Machine(nodes=1, memory="16M")
    raises(ValueError, lambda: machine.free_pages(Closing(), 0))
    """)
