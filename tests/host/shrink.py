"""Make a failing list of steps as short as it gets, and write it down as a script."""

from __future__ import annotations

import time
from collections.abc import Callable

from host.compare import Divergence
from host.files import SIZES
from host.ops import ADDRESSES, NOBODY, Answer, Op, spell

Fails = Callable[[list[Op]], Divergence | None]


def _alike(one: Divergence | None, other: Divergence) -> bool:
    """Whether two are the same fault, as far as can be told."""
    return one is not None and _kind(one) == _kind(other)


def _kind(divergence: Divergence) -> str:
    words = divergence.what.split()
    return divergence.what if words[0] == "answer" else words[0]


def shrink(ops: list[Op], divergence: Divergence, fails: Fails, seconds: float = 120.0
           ) -> tuple[list[Op], Divergence]:
    """
    Leave out steps as long as the rest fails alike: halves first, then less, then single ones.

    :return: the steps that are left and how they fail.
    """
    until = time.monotonic() + seconds
    kept = ops[:divergence.step + 1]
    again = fails(kept)
    if again is None:
        return kept, divergence
    last = again
    size = len(kept) // 2
    while size and time.monotonic() < until:
        at, left_out = len(kept) - size, False
        while at > -size and time.monotonic() < until:
            some = kept[:max(at, 0)] + kept[at + size:]
            found = fails(some) if some else None
            if found is not None and _alike(found, last):
                kept, last, left_out = some[:found.step + 1], found, True
                at = min(at, len(kept))
            at -= size
        if size == 1 and not left_out:
            break
        size = size if left_out and size == 1 else size // 2
    return _plain(kept, last, fails, until)


def _plain(ops: list[Op], last: Divergence, fails: Fails, until: float
           ) -> tuple[list[Op], Divergence]:
    """Access by the software MMU, few bytes, where that fails too."""
    for at, op in enumerate(ops):
        if op.name in ("read", "write") and time.monotonic() < until:
            for args in ((op.args[0], 1, op.args[2], False), (*op.args[:3], False)):
                some = [*ops[:at], op._replace(args=args), *ops[at + 1:]]
                found = fails(some) if args != op.args else None
                if found is not None and _alike(found, last):
                    ops, last = some, found
                    break
    return ops, last


HEAD = '''\
"""{what}"""
{more}import realmem as rm

machine = rm.Machine(nodes=1, memory="64M")


def spawn():
    p = machine.spawn()
    at = p.mmap(None, 4096, 0, 0x22)
    p.munmap(at, 4096)
    return p, at + 4096


def raw_read(p, at, n):
    with p.guard():
        bytes(p.view(at, n))


def raw_write(p, at, data):
    with p.guard():
        p.view(at, len(data))[:] = data


def step(call, *args):
    try:
        value = call(*args)
    except (OSError, rm.SegmentationFault, rm.BusError, MemoryError) as error:
        value = repr(error)
    if isinstance(value, int) and abs(value - base) < 1 << 38:
        value = f"base {{value - base:+#x}}"
    print(call.__qualname__, *(f"{{arg:#x}}" if isinstance(arg, int) else arg for arg in args),
          "->", value)

'''


FILES = '''\
folder = tempfile.TemporaryDirectory()
files = []          # of each, descriptors by how it is opened: O_RDONLY, O_WRONLY, O_RDWR
for number, size in enumerate({sizes}):
    path = os.path.join(folder.name, f"file{{number}}")
    with open(path, "wb") as file:
        file.write(bytes((80 * number + 5 * (at // 4096) + at) % 256 for at in range(size)))
    files.append([os.open(path, how) for how in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR)])
outside = machine.spawn()


def sync(number, offset, n):
    size = os.fstat(files[number][2]).st_size
    at = outside.mmap(None, max(size, 1), rm.PROT_READ, rm.MAP_SHARED, files[number][2])
    first, end = offset & -4096, min(offset + n, size)
    if offset < end:
        outside.msync(at + first, end - first, rm.MS_SYNC)
    outside.munmap(at, max(size, 1))

'''


def script(taken: list[tuple[Op, Answer]], divergence: Divergence) -> str:
    """Write steps as a program, with the host's answers beside them."""
    files = any(op.slot == NOBODY or (op.name == "mmap" and len(op.args) > 5) for op, _ in taken)
    lines = [HEAD.format(what=divergence.what, more="import os\nimport tempfile\n\n" * files)]
    if files:
        lines.append(FILES.format(sizes=SIZES))
    spawned = 0
    for op, answer in taken:
        p = f"p{op.slot}"
        if op.slot == NOBODY:
            lines += _outside(op)
            continue
        if op.name == "spawn":
            spawned += 1
            lines.append(f"{p}, base = spawn()")
            continue
        if op.name == "fork":
            lines.append(f"p{op.args[0]} = {p}.fork()")
        elif op.name == "rlimit":
            value = "rm.RLIM_INFINITY" if op.args[1] == (1 << 64) - 1 else f"{op.args[1]:#x}"
            lines.append(f"{p}.rlimit[{op.args[0]!r}] = {value}")
        elif op.name == "capability":
            lines.append(f"{p}.capabilities.{'add' if op.args[1] else 'discard'}({op.args[0]!r})")
        else:
            raw = op.name in ("read", "write") and bool(op.args[3])
            words = ", ".join([*([f"raw_{op.name}", p] if raw else [f"{p}.{op.name}"]),
                               *_arguments(op)])
            lines.append(f"step({words})   # host: {answer}")
    comment = str(divergence).replace("\n", "\n# ")
    lines.append(f"# {comment}")
    return "\n".join(lines)


def _outside(op: Op) -> list[str]:
    """Write down what is done to a file from outside."""
    number, *args = op.args
    if op.name == "truncate":
        return [f"os.ftruncate(files[{number}][2], {args[0]:#x})"]
    if op.name == "pwrite":
        offset, n, seed = args
        return [f"sync({number}, {offset:#x}, {n})",
                f"os.pwrite(files[{number}][2], {_data(seed, n)}, {offset:#x})"]
    return ["machine.drop_caches(1)"]


def _data(seed: object, n: object) -> str:
    return f"bytes(({seed} + i) % 256 for i in range({n}))"


def _arguments(op: Op) -> list[str]:
    args = list(op.args)
    if op.name == "process_madvise":
        ranges = ", ".join(f"({spell(start)}, {length:#x})" for start, length in args[0])
        return [f"[{ranges}]", str(args[1])]
    if op.name in ("read", "write"):
        return [spell(args[0]), str(args[1]) if op.name == "read" else _data(args[2], args[1])]
    if op.name == "touch":
        return [spell(args[0]), f"{args[1] * 4096 - args[0] % 4096:#x}", str(args[2])]
    if op.name == "mmap":
        file = "files[{}][{}]".format(*args[5:]) if len(args) > 5 else "None"
        return [spell(args[0]), *(f"{arg:#x}" for arg in args[1:4]), file, f"{args[4]:#x}"]
    at = ADDRESSES.get(op.name, ())
    words = []
    for i, arg in enumerate(args):
        if i in at or (op.name == "prctl" and i == 2):
            words.append(spell(arg))
        else:
            words.append(f"{arg:#x}" if isinstance(arg, int) else repr(arg))
    return words
