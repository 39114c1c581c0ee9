"""A numpy program over windows gives the bytes that it gives over ordinary memory."""

from __future__ import annotations

import textwrap

import pytest

# Two BLAS threads whatever the host: Python knows nothing of them, and their faults are served.
BLAS = {"OPENBLAS_NUM_THREADS": "2", "OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"}

PROGRAM = """
    import hashlib, mmap

    class Ordinary:
        # As aligned as a window's.
        def __init__(self, sizes):
            self.maps = [mmap.mmap(-1, size) for size in sizes]
        def array(self, i, dtype):
            return np.frombuffer(self.maps[i], dtype=dtype)

    class Windowed:
        def __init__(self, process, places, sizes):
            self.process, self.places, self.sizes = process, places, sizes
        def array(self, i, dtype):
            return array(self.process, self.places[i], self.sizes[i], dtype)

    def program(memory, n, m, seed):
        # Fill, sort, transform, multiply: all results lie in the memory under test.
        rng = np.random.default_rng(seed)
        keys, waves, a, b, c = (memory.array(i, kind) for i, kind in enumerate(
            (np.int64, np.complex128, np.float64, np.float64, np.float64)))
        keys[:] = rng.integers(-2**62, 2**62, n)
        keys.sort()
        waves[:] = rng.standard_normal(n) + 1j * rng.standard_normal(n)
        waves[:] = np.fft.fft(waves)
        a[:] = rng.standard_normal(m * m)
        b[:] = rng.standard_normal(m * m)
        np.matmul(a.reshape(m, m), b.reshape(m, m), out=c.reshape(m, m))
        return bytes_of(memory)

    def go_on(memory, n, m, seed):
        # What follows a fork: reads of everything, stores to some of it.
        rng = np.random.default_rng(seed)
        keys, waves, a, b, c = (memory.array(i, kind) for i, kind in enumerate(
            (np.int64, np.complex128, np.float64, np.float64, np.float64)))
        keys[rng.permutation(n)[: n // 3]] ^= seed
        keys[n // 2:].sort(kind="stable")
        waves[:] = np.fft.ifft(waves)
        a.reshape(m, m)[::3] += c.reshape(m, m)[::3]
        np.matmul(b.reshape(m, m), a.reshape(m, m), out=c.reshape(m, m))
        return bytes_of(memory)

    def bytes_of(memory):
        return [hashlib.sha256(memory.array(i, np.uint8)).hexdigest() for i in range(5)]

    def sizes_of(n, m):
        return [-(-size // PAGE) * PAGE for size in (8 * n, 16 * n, *[8 * m * m] * 3)]

    def exact(n, m):
        assert sizes_of(n, m) == [8 * n, 16 * n, *[8 * m * m] * 3]
        return sizes_of(n, m)

    n, m = N, M
    sizes = exact(n, m)
    want = program(Ordinary(sizes), n, m, 1)
    ordinary = []
    for seed in (2, 3):
        memory = Ordinary(sizes)
        assert program(memory, n, m, 1) == want     # the program itself repeats
        ordinary.append(go_on(memory, n, m, seed))
    with Machine(nodes=1, memory=MEMORY, **OPTIONS) as machine:
        p = machine.spawn()
        places = [p.mmap(None, size, RW, ANON) for size in sizes]
        memory = Windowed(p, places, sizes)
        with p.guard():
            assert program(memory, n, m, 1) == want
        assert p.rss * PAGE >= sum(sizes)
        child = p.fork()
        theirs = Windowed(child, places, sizes)
        with p.guard(), child.guard():
            if SIDE_BY_SIDE:
                got = [None, None]
                def work(i, memory, seed):
                    got[i] = go_on(memory, n, m, seed)
                threads = [threading.Thread(target=work, args=args) for args in
                           ((0, memory, 2), (1, theirs, 3))]
                for t in threads: t.start()
                for t in threads: t.join()
            else:
                got = [go_on(memory, n, m, 2), go_on(theirs, n, m, 3)]
        assert got == ordinary
        assert [hashlib.sha256(p.read(at, size)).hexdigest()
                for at, size in zip(places, sizes)] == got[0]
        machine.check()
        with open("/proc/self/status") as status:
            tasks = int(next(line for line in status if line.startswith("Threads:")).split()[1])
        print("threads", tasks, "sigsegv", machine.hoststat["sigsegv"], "host VMAs",
              machine.hoststat["host_vmas"])
"""


def run(child, n: int, m: int, memory: str, *, side_by_side: bool = False, **options) -> str:
    head = (f"N, M, MEMORY, SIDE_BY_SIDE, OPTIONS = "
            f"{n}, {m}, {memory!r}, {side_by_side}, {options}\n")
    done = child(head + textwrap.dedent(PROGRAM), env=BLAS, timeout=600)
    return str(done.stdout)


def test_parent_and_child(child) -> None:
    run(child, 1 << 19, 512, "64M")


def test_parent_and_child_side_by_side(child) -> None:
    """Both go on at once, each in a thread, with threads of BLAS below them."""
    run(child, 1 << 18, 512, "64M", side_by_side=True)


def test_within_a_small_budget_of_host_vmas(child) -> None:
    """What numpy reads was flushed meanwhile, and comes back."""
    run(child, 1 << 17, 256, "32M", host_vmas=400)


@pytest.mark.slow
def test_tens_of_mebibytes(child, soak_factor) -> None:
    scale = 4 if soak_factor >= 10 else 1
    print(run(child, (1 << 20) * scale, 1024, f"{192 * scale}M"))
    print(run(child, (1 << 20) * scale, 1024, f"{192 * scale}M", side_by_side=True))
