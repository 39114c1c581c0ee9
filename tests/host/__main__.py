"""
Take random steps on the host's kernel and on realmem and compare after each.

    PYTHONPATH=tests .venv/bin/python -m host [--steps N] [--seed S] [--jobs J] [--twice] ...

Prints how often each call ended in which way.  When the two part, the steps are shrunk and printed
as a program, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections import Counter

from host.run import EPISODE, Outcome, Replayer, Worlds, run
from host.shrink import script, shrink


def table(outcome: Outcome) -> str:
    """Write down how the calls ended."""
    calls = Counter[str]()
    for (name, _), count in outcome.answers.items():
        calls[name] += count
    total = sum(calls.values()) or 1
    lines = []
    for name, count in sorted(calls.items()):
        ways = [(label, n) for (call, label), n in outcome.answers.items() if call == name]
        ways.sort(key=lambda way: -way[1])
        lines.append(f"{name:16} {100 * count / total:5.1f} %  "
                     + ", ".join(f"{label} {n}" for label, n in ways))
    maps = sum(outcome.maps.values()) or 1
    lines.append(f"{100 * outcome.maps['not fixed'] / maps:.0f} % of the maps were not fixed")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(prog="host", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="episodes at a time")
    parser.add_argument("--each", type=int, default=EPISODE, help="steps of an episode")
    parser.add_argument("--twice", action="store_true", help="compare the host with itself")
    parser.add_argument("--without", default="", help="steps and features to leave out: a,b,c")
    parser.add_argument("--debug", type=int, default=0, help="the machine's debug level")
    parser.add_argument("--faults", default="sigsegv", help="the machine's backend")
    parser.add_argument("--no-shrink", action="store_true")
    options = parser.parse_args(argv)
    # Worlds live in children that may be killed: what they leave behind is removed here.
    with tempfile.TemporaryDirectory(prefix="realmem-host-") as folder:
        return go(options, folder)


def go(options: argparse.Namespace, folder: str) -> int:
    """Take the steps; where they part, shrink them."""
    without = {name for name in options.without.split(",") if name}
    worlds = Worlds(options.twice, frozenset(without),
                    {"debug": options.debug, "faults": options.faults}, folder)
    tell = (lambda text: print(f"\r{text}   ", end="", file=sys.stderr, flush=True)) \
        if sys.stderr.isatty() else (lambda text: None)
    outcome = run(worlds, options.seed, options.steps, options.jobs, options.each, tell)
    print(table(outcome))
    print(f"{outcome.steps} steps, seed {options.seed}")
    if outcome.divergence is None:
        return 0
    print(f"\n{outcome.divergence}\n")
    if outcome.ops is not None and not options.no_shrink:
        replayer = Replayer(worlds)
        try:
            ops, divergence = shrink(outcome.ops, outcome.divergence, replayer)
            print(script(replayer.answers(ops), divergence))
        finally:
            replayer.close()
    sys.stdout.flush()
    return 1


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)
