"""``realmem bench``: measure, show, keep, compare."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from realmem.bench import registry

if TYPE_CHECKING:
    from rich.console import Console

    from realmem.bench.results import Run


def _known_names(ctx: Any, param: Any, names: tuple[str, ...]) -> tuple[str, ...]:
    """Check the names of benches; none at all means all of them."""
    known = (*registry.names(), "all")
    for name in names:
        if name not in known:
            raise click.BadParameter(f"no bench {name!r}: one of {', '.join(known)}")
    return names or ("all",)


def _page_kinds(ctx: Any, param: Any, text: str | None) -> tuple[str, ...] | None:
    """Read a comma-separated list of page sizes."""
    if text is None:
        return None
    kinds = tuple(dict.fromkeys(word.strip().upper() for word in text.split(",")))
    for kind in kinds:
        if kind not in registry.PAGE_KINDS:
            known = ", ".join(registry.PAGE_KINDS)
            raise click.BadParameter(f"no page size {kind!r}: one of {known}")
    return kinds


def _earlier_run(ctx: Any, param: Any, path: Path | None) -> Run | None:
    """Read the JSON file of an earlier run."""
    from realmem.bench.results import Run

    if path is None:
        return None
    try:
        return Run.load(path)
    except OSError as why:
        raise click.BadParameter(f"{path}: {why.strerror}") from why
    except ValueError as why:
        raise click.BadParameter(f"{path}: {why}") from why


def _writable(ctx: Any, param: Any, path: Path | None) -> Path | None:
    """Refuse a file that cannot be made before minutes are spent on what should go into it."""
    if path is None:
        return None
    try:
        if not path.absolute().parent.is_dir():
            raise click.BadParameter(f"no such folder: {path.parent}")
        if path.exists() and not path.is_file():
            return path                     # a pipe or a device: opening it may do something
        is_new = not path.exists()
        path.open("ab").close()             # the only sure answer; what is there stays
        if is_new:
            path.unlink()
    except OSError as why:
        raise click.BadParameter(f"{path}: {why.strerror}") from why
    return path


class BenchCommand(click.Command):
    """A command whose help also lists the benches."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write each bench's name with its title."""
        rows = [(name, registry.get(name).title) for name in registry.names()]
        with formatter.section("Benches"):
            formatter.write_dl([*rows, ("all", "All of them.")])


@click.command(cls=BenchCommand)
@click.argument("names", nargs=-1, callback=_known_names, metavar="[BENCH|all]...")
@click.option("--quick", is_flag=True, help="Fewer sizes and samples: well under a minute.")
@click.option("--pages", callback=_page_kinds, metavar="4K,2M,1G",
              help="Page sizes to measure on; default: 4K, and 2M where the host gives them.")
@click.option("--threads", type=click.IntRange(min=1), metavar="N",
              help="At most so many threads.")
@click.option("--seed", type=click.IntRange(min=0), default=0, metavar="N", show_default=True,
              help="Of every random choice.")
@click.option("--json", "json_file", help="Keep every sample and fact in FILE.", metavar="FILE",
              type=click.Path(dir_okay=False, writable=True, path_type=Path),
              callback=_writable)
@click.option("--compare", "earlier", type=click.Path(path_type=Path),
              callback=_earlier_run, metavar="FILE",
              help="Show ratios to an earlier run's FILE, with their noise.")
@click.option("--peers", "with_peers", is_flag=True, help="Also run the peer programs, in turns "
              "with ours; they are looked for in $REALMEM_PEERS.")
def bench(
    names: tuple[str, ...],
    quick: bool,
    pages: tuple[str, ...] | None,
    threads: int | None,
    seed: int,
    json_file: Path | None,
    earlier: Run | None,
    with_peers: bool,
) -> None:
    """
    Measure this machine's memory, for each CPU node and memory node.

    Without a BENCH, all of them run.
    """
    import os

    from rich.console import Console

    import realmem.bench
    from realmem.cli import bench_view

    console = Console()
    peers_dir = os.environ.get("REALMEM_PEERS")
    with _progress() as (start, say):
        options = realmem.bench.Options(
            quick=quick,
            pages=pages,
            threads=threads,
            seed=seed,
            peers_dir=Path(peers_dir) if peers_dir else None,
            progress=say,
        )
        run = realmem.bench.run(names, options, with_peers=with_peers, on_start=start)
    if json_file is not None:       # first: whoever reads the tables may leave before their end
        try:
            run.save(json_file)
        except OSError as why:
            raise click.ClickException(f"{json_file}: {why.strerror}") from why
    _show(console, run, with_peers)
    if earlier is not None:
        bench_view.show_comparison(console, realmem.bench.compare(earlier, run))
    if json_file is not None:
        console.print(f"Every sample is in {json_file}.", highlight=False)
    if run.failures:
        raise click.ClickException(
            "; ".join(f"bench {name}: {reason}" for name, reason in run.failures.items())
        )


def _show(console: Console, run: Run, with_peers: bool) -> None:
    from realmem.cli import bench_view

    bench_view.show_host(console, run)
    for name in dict.fromkeys(result.bench for result in run.results):
        bench_view.show_bench(
            console,
            registry.get(name).title,
            [result for result in run.results if result.bench == name],
        )
    if with_peers:
        bench_view.show_peers(console, run.peers)


@contextlib.contextmanager
def _progress() -> Iterator[tuple[Callable[[int, int], None], Callable[[str], None]]]:
    """
    Give two callables: benches done and to do, and a few words on what is being measured.

    They draw a bar on a terminal's last line, and only when they are called: a thread that
    kept it moving would run on the CPUs that are measured.
    """
    from rich.console import Console

    terminal = Console(stderr=True)
    if not terminal.is_terminal:
        yield lambda done, total: None, lambda what: None
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    with Progress(
        BarColumn(bar_width=16), TimeElapsedColumn(), TextColumn("{task.description}"),
        console=terminal, transient=True, auto_refresh=False,
    ) as bar:
        task = bar.add_task("")

        def start(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total, refresh=True)

        def say(what: str) -> None:
            bar.update(task, description=what, refresh=True)

        yield start, say
