"""Everything at once: threads store, others fork, unmap, move, protect, discard, start and exit.

Each thread that stores has a word of its own in each page and must find there what it stored last:
no store is lost, whatever happens to the address space meanwhile.  What hangs shows where.
"""

from __future__ import annotations

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.storm]

STORM = """
    import random, time, traceback
    from realmem._bench.fault_loops import stop_storm, storm, store_in_new_thread

    def pages(process, addr, n, word):
        return array(process, addr, n * PAGE)[word::512]

    class Weather:
        \"\"\"Threads that work until one fails or time is up.\"\"\"

        def __init__(self, seconds):
            self.deadline = time.monotonic() + seconds
            self.errors, self.turns, self.threads = [], {}, []
            stop_storm(False)

        def start(self, name, work, again=True):
            self.turns[name] = 0
            def run():
                rng = random.Random(name)
                try:
                    while not self.errors and time.monotonic() < self.deadline:
                        work(rng)
                        self.turns[name] += 1
                        if not again:
                            break
                except BaseException:
                    self.errors.append(f"{name}: {traceback.format_exc()}")
                    stop_storm()
            thread = threading.Thread(target=run)
            self.threads.append(thread)
            thread.start()

        def end(self, machine):
            while not self.errors and time.monotonic() < self.deadline:
                machine.check()
                time.sleep(0.05)
            stop_storm()
            for thread in self.threads:
                thread.join()
            assert not self.errors, "\\n".join(self.errors)
            assert min(self.turns.values()) > 0, self.turns

    class Stored:
        \"\"\"A thread that stores to a word of each page for as long as the storm lasts.\"\"\"

        def __init__(self, process, addr, n, word):
            self.process, self.addr, self.n, self.word = process, addr, n, word
            self.at = process.host_address(addr)

        def __call__(self, rng):
            self.lost, self.rounds = storm(self.at, self.n, self.word)

        def verify(self):
            assert self.lost == 0 and self.rounds > 3, (self.word, self.lost, self.rounds)
            found = pages(self.process, self.addr, self.n, self.word)
            assert (found == self.rounds).all(), (self.word, self.rounds, found)

    class Own:
        \"\"\"Pages whose word 0 one thread raises, between calls that change what is below.\"\"\"

        def __init__(self, process, n):
            self.p, self.n = process, n
            self.replace(None)

        def replace(self, rng):
            if rng is not None:
                self.p.munmap(self.a, self.n * PAGE)
            self.a = self.p.mmap(None, self.n * PAGE, RW, ANON)
            self.value = 0

        def store(self, rng):
            at = self.p.host_address(self.a)
            lost, self.value = storm(at, self.n, 0, self.value, rng.randint(1, 5))
            assert lost == 0, (self.a, self.n, lost)

        def protect(self, rng):
            first = rng.randrange(self.n)
            n = rng.randint(1, self.n - first)
            self.p.mprotect(self.a + first * PAGE, n * PAGE, PROT_READ)
            assert (pages(self.p, self.a, self.n, 0) == self.value).all()
            x = array(self.p, self.a + first * PAGE, PAGE)
            def forbidden():
                with self.p.guard():
                    x[0] = 2**63
            assert raises(SegmentationFault, forbidden).code == SEGV_ACCERR
            self.p.mprotect(self.a, self.n * PAGE, RW)

        def move(self, rng):
            to = self.p.mmap(None, self.n * PAGE, PROT_NONE, ANON)
            self.a = self.p.mremap(self.a, self.n * PAGE, self.n * PAGE,
                                   MREMAP_MAYMOVE | MREMAP_FIXED, to)
            assert self.a == to

        def resize(self, rng):
            n = rng.randint(4, 80)
            self.a = self.p.mremap(self.a, self.n * PAGE, n * PAGE, MREMAP_MAYMOVE)
            if n > self.n:
                fresh = pages(self.p, self.a + self.n * PAGE, n - self.n, 0)
                assert not fresh.any()
                fresh[:] = self.value
            self.n = n

        def discard(self, rng):
            self.p.madvise(self.a, self.n * PAGE, MADV_DONTNEED)
            self.value = 0

        def turn(self, rng):
            rng.choice((self.replace, self.protect, self.move, self.resize, self.discard))(rng)
            self.store(rng)
            assert (pages(self.p, self.a, self.n, 0) == self.value).all()

    # What a fork sees of a thread that raises a word page by page: the pages it had passed.
    def is_snapshot(words):
        steps = np.flatnonzero(np.diff(words.astype(np.int64)))
        return len(steps) == 0 or (len(steps) == 1
                                   and words[steps[0]] == words[steps[0] + 1] + 1)

    def big_storm(seconds, folios):
        with Machine(nodes=1, memory="256M", window="1G") as machine:
            if folios:
                machine.sysfs[
                    f"/sys/kernel/mm/transparent_hugepage/hugepages-{folios}/enabled"] = "always"
            machine.spawn().exit()
            p = machine.spawn()
            n, n_shared = 700, 130
            private = p.mmap(None, n * PAGE, RW, ANON)
            shared = p.mmap(None, n_shared * PAGE, RW, MAP_SHARED | MAP_ANONYMOUS)
            weather = Weather(seconds)
            storers = [Stored(p, private, n, 0), Stored(p, private, n, 1),
                       Stored(p, shared, n_shared, 0)]
            shared_rounds = [0]

            def fork(rng):
                c = p.fork()
                before = [pages(c, private, n, word).copy() for word in (0, 1)]
                assert all(is_snapshot(words) for words in before), before
                lost, rounds = storm(c.host_address(private), n, 2, 0, rng.randint(1, 3))
                assert lost == 0
                g = c.fork() if rng.random() < 0.3 else None
                lost, shared_rounds[0] = storm(c.host_address(shared), n_shared, 3,
                                               shared_rounds[0], rng.randint(1, 3))
                assert lost == 0
                for one in (c, g):
                    if one is not None:
                        assert all((pages(one, private, n, word) == before[word]).all()
                                   for word in (0, 1))
                        assert (pages(one, private, n, 2) == rounds).all()
                if g is not None:
                    lost, _ = storm(g.host_address(private), n, 2, rounds, 1)
                    assert lost == 0
                for one in rng.sample((c, g), 2):
                    if one is not None:
                        one.exit()
                p.wait()

            def start(rng):
                q = machine.spawn()
                few = rng.randint(1, 600)
                a = q.mmap(None, few * PAGE, RW, ANON)
                lost, rounds = storm(q.host_address(a), few, 5, 0, 2)
                assert lost == 0
                c = q.fork()
                for one in rng.sample((q, c), 2):
                    store_in_new_thread(one.host_address(a) + 8, one.pid)
                    lost, _ = storm(one.host_address(a), few, 5, rounds, 2)
                    assert lost == 0
                    assert array(one, a, PAGE)[1] == one.pid
                    one.exit()

            own = [Own(p, 40), Own(p, 9)]
            for i, storer in enumerate(storers):
                weather.start(f"store {i}", storer, again=False)
            weather.start("fork", fork)
            weather.start("own 0", own[0].turn)
            weather.start("own 1", own[1].turn)
            weather.start("start", start)
            weather.end(machine)
            machine.check()
            for storer in storers:
                storer.verify()
            assert (pages(p, shared, n_shared, 3) == shared_rounds[0]).all()
            assert len(machine.processes) == 1, machine.processes
            p.exit()
            machine.check()
            print(weather.turns, [storer.rounds for storer in storers])
"""


@pytest.mark.parametrize("folios", [None, "64kB", "2048kB"], ids=["pages", "64 KiB", "2 MiB"])
def test_everything_at_once(child, folios, soak_factor) -> None:
    """Two threads store privately, one shared, and four others change what lies below them."""
    seconds = 5 * soak_factor
    child(
        STORM
        + f"""
    faulthandler.dump_traceback_later({60 + 3 * seconds}, exit=True)
    big_storm({seconds}, {folios!r})
    """,
        timeout=int(120 + 4 * seconds),
    )
