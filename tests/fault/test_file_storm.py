"""Threads that store to a file's pages while it is written back, dropped, forked and unmapped."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.storm

STORM = """
    import time
    from realmem._bench.fault_loops import stop_storm, storm

    def again_and_again(work, deadline, errors):
        \"\"\"Have a thread do something until then.\"\"\"
        def body():
            turn = 0
            try:
                while time.monotonic() < deadline or turns_left(turn):
                    work(turn)
                    turn += 1
            except BaseException as error:
                errors.append(error)
        def turns_left(turn):
            return turn < 4
        thread = threading.Thread(target=body)
        thread.start()
        return thread

    def run(seconds, path, disturb, pages=64, threads=2, beside=None):
        with open(path, "wb") as file:
            file.truncate(pages * PAGE)
        with one_process("64M", window="1G") as (machine, p):
            # Two places of one process, and the words of each thread on all pages of the file.
            maps = [p.mmap(None, pages * PAGE, RW, MAP_SHARED, path) for _ in range(threads)]
            results = {}
            stop_storm(False)
            def work(word):
                results[word] = storm(p.host_address(maps[word]), pages, word)
            workers = [threading.Thread(target=work, args=(w,)) for w in range(threads)]
            for t in workers: t.start()
            turns, errors = 0, []
            deadline = time.monotonic() + seconds
            if beside is not None:
                q = machine.spawn("beside")
                theirs = q.mmap(None, pages * PAGE, RW, MAP_SHARED, path)
                other = again_and_again(
                    lambda turn: beside(q, theirs, pages, turn), deadline, errors)
            try:
                while time.monotonic() < deadline or turns < 4:
                    disturb(machine, p, maps, pages, turns)
                    turns += 1
            finally:
                stop_storm()
                for t in workers: t.join()
                if beside is not None:
                    other.join()
                    q.exit()
            assert not errors, errors
            assert [results[w][0] for w in range(threads)] == [0] * threads, (results, turns)
            assert min(r[1] for r in results.values()) > 0, results
            machine.check()
            p.msync(maps[0], pages * PAGE, MS_SYNC)
            with open(path, "rb") as file:
                there = np.frombuffer(file.read(), dtype=np.uint64).reshape(pages, 512)
            for word in range(threads):
                assert (there[:, word] == results[word][1]).all(), (word, results, there[:, word])
            for vma in p.vmas:
                p.munmap(vma.start, vma.end - vma.start)
            machine.check()
            assert p.rss == 0 and not machine._paging.mmu.inodes
"""


def test_stores_while_they_are_written_back(child, soak_factor, tmp_path) -> None:
    """Each store is in the file, or its page is dirty: the last msync leaves nothing out."""
    child(
        STORM
        + f"""
    def disturb(machine, p, maps, pages, turn):
        p.msync(maps[turn % 2], pages * PAGE, MS_SYNC)
        if turn % 3 == 0:
            p.madvise(maps[turn % 2], pages * PAGE, MADV_DONTNEED)
            machine.drop_caches(1)
        elif turn % 3 == 1:
            p.mm.core.flush(maps[0], maps[0] + pages * PAGE)
    run({1.5 * soak_factor}, {str(tmp_path / "file")!r}, disturb)
    """,
        timeout=60 + 20 * soak_factor,
    )


def test_stores_while_others_write_fork_and_come_and_go(child, soak_factor, tmp_path) -> None:
    """Somebody else writes to words that no thread has; children store to theirs, and end."""
    child(
        STORM
        + f"""
    path = {str(tmp_path / "file")!r}
    def disturb(machine, p, maps, pages, turn):
        q = p.fork()
        page = turn % pages
        q.write(maps[0] + page * PAGE + 4000, b"x")
        b = q.mmap(None, 2 * PAGE, RW, MAP_PRIVATE, path, (page // 2) * 2 * PAGE)
        q.write(b, b"mine")
        assert q.read(b, 4) == b"mine"
        q.msync(maps[0], pages * PAGE, MS_SYNC)
        q.exit()
        p.wait()
        if turn % 5 == 0:
            p.mprotect(maps[1], pages * PAGE, RW)
            with open(path, "r+b") as file:
                file.truncate((pages + 3 + turn % 2) * PAGE)
                file.truncate(pages * PAGE)
    run({1.5 * soak_factor}, path, disturb)
    """,
        timeout=60 + 20 * soak_factor,
    )


@pytest.mark.parametrize("change", ["split", "move", "protect", "many"])
def test_stores_while_their_vmas_change_beside_write_back(
    child, soak_factor, tmp_path, change
) -> None:
    """Another process writes back while the mappings are split, moved and protected."""
    child(
        STORM
        + f"""
    change, path, extra = {change!r}, {str(tmp_path / "file")!r}, []
    def disturb(machine, p, maps, pages, turn):
        page = turn * 2 % (pages - 2)
        at = maps[0] + page * PAGE
        if change == "split":
            p.madvise(at, PAGE, MADV_DONTDUMP)
            p.madvise(at, PAGE, MADV_DODUMP)
        elif change == "protect":
            p.mprotect(maps[0], pages * PAGE, RW | 4)
            p.mprotect(maps[0], pages * PAGE, RW)
        elif change == "move":
            # A third mapping, which stores by software, goes to and fro.
            if not extra:
                extra.append(p.mmap(None, pages * PAGE, RW, MAP_SHARED, path))
                extra.append(p.mmap(None, pages * PAGE, 0, ANON))
            p.write(extra[0] + page * PAGE + 2000, turn.to_bytes(8, "little"))
            p.mremap(extra[0], pages * PAGE, pages * PAGE, 3, extra[1])
            p.write(extra[1] + page * PAGE + 2000, turn.to_bytes(8, "little"))
            p.mprotect(extra[1], pages * PAGE, 1)
            p.mprotect(extra[1], pages * PAGE, RW)
            extra.reverse()
            p.mmap(extra[1], pages * PAGE, 0, ANON | MAP_FIXED)
        else:
            # More places of each page than are found at a time.
            if len(extra) == 40:
                p.munmap(extra.pop(turn % 7), pages * PAGE)
            extra.append(p.mmap(None, pages * PAGE, RW, MAP_SHARED, path))
            p.write(extra[-1] + page * PAGE + 3000, b"x")
    def beside(q, theirs, pages, turn):
        q.msync(theirs, pages * PAGE, MS_SYNC)
    run({1.0 * soak_factor}, path, disturb, beside=beside)
    """,
        timeout=60 + 20 * soak_factor,
    )


def test_processes_that_come_and_go_with_a_file(child, soak_factor, tmp_path) -> None:
    """Each maps, writes, syncs and unmaps, beside the others: the last one closes the file."""
    child(
        STORM
        + f"""
    sys.setswitchinterval(1e-6)
    path = {str(tmp_path / "file")!r}
    with open(path, "wb") as file:
        file.truncate(4 * PAGE)
    with rm.Machine(1, "64M", window="1G") as machine:
        errors, threads, last = [], [], {{}}
        deadline = time.monotonic() + {1.5 * soak_factor}
        for i in range(3):
            def work(turn, i=i, p=machine.spawn()):
                a = p.mmap(None, 4 * PAGE, RW, MAP_SHARED, path)
                p.write(a + i * PAGE, b"%08d" % turn)
                if turn % 3 == 0:
                    p.msync(a, 4 * PAGE, MS_SYNC)
                assert p.read(a + i * PAGE, 8) == b"%08d" % turn
                p.munmap(a, 4 * PAGE)
                with open(path, "rb") as file:
                    file.seek(i * PAGE)
                    there = int(file.read(8))
                # Or another's mapping keeps it for a while.
                assert there <= turn, (there, turn)
                last[i] = turn
            threads.append(again_and_again(work, deadline, errors))
        for thread in threads: thread.join()
        assert not errors, errors
        machine.check()
        assert not machine._paging.mmu.inodes
        with open(path, "rb") as file:
            for i in range(3):
                file.seek(i * PAGE)
                assert int(file.read(8)) == last[i], last
    """,
        timeout=60 + 20 * soak_factor,
    )
