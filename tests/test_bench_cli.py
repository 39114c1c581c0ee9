"""``realmem bench``: usage errors, a whole small run, tables at several widths."""

import io
import json
import re
from dataclasses import replace

import pytest
from click.testing import CliRunner
from rich.console import Console

from realmem.bench import compare, registry
from realmem.bench.registry import Bench
from realmem.bench.results import PeerResult, Result, Run
from realmem.cli import bench_view, bench_words, main
from realmem.cli.bench import bench


def results_of(options):
    for size in (4096, 8192, 16384, 32768):
        options.progress(f"size {size}")
        level = size / 4096
        yield Result(
            "toy", "load", "ns", (level, 1.1 * level, 1.2 * level), 0, 0,
            {"size_bytes": size, "pages": "4K"}, ("unverified",), note="4K: toy memory",
        )


def peers_of(options):
    yield PeerResult("toy", "other", "load", "ns", (1.0, 2.0), (2.0, 2.0))
    yield PeerResult("toy", "missing", "load", "ns")


@pytest.fixture
def toy(monkeypatch):
    """One bench, called toy, in place of the real ones."""
    entry = Bench("toy", "A toy", results_of, peers_of)
    monkeypatch.setattr(registry, "names", lambda: ("toy",))
    monkeypatch.setattr(registry, "get", {"toy": entry}.__getitem__)
    return entry


def call(*words, **more):
    return CliRunner().invoke(bench, words, **more)


def test_run_keeps_every_sample(toy, tmp_path):
    target = tmp_path / "out.json"
    done = call("toy", "--quick", "--pages", "4k", "--seed", "7", "--json", str(target))
    assert done.exit_code == 0, done.output
    run = Run.load(target)
    assert [len(result.samples) for result in run.results] == [3] * 4
    assert run.options["pages"] == ["4K"]
    assert run.options["seed"] == 7
    assert "stamped unverified" in done.output
    assert "4K: toy memory" in done.output
    assert "16K" in done.output


def test_compare_with_itself_finds_nothing(toy, tmp_path):
    target = tmp_path / "out.json"
    assert call("all", "--json", str(target)).exit_code == 0
    done = call("all", "--compare", str(target))
    assert done.exit_code == 0, done.output
    assert "4 of 4 figures within their noise" in done.output


def test_compare_shows_what_moved(toy, tmp_path):
    target = tmp_path / "out.json"
    call("--json", str(target))
    data = json.loads(target.read_text())
    data["results"][2]["samples"] = [sample / 9 for sample in data["results"][2]["samples"]]
    target.write_text(json.dumps(data))
    done = call("--compare", str(target))
    assert "worse" in done.output
    assert "9.00" in done.output
    assert "3 of 4 figures within" in done.output


def test_peers(toy):
    done = call("--peers")
    assert done.exit_code == 0
    assert "not present" in done.output
    assert "0.750" in done.output           # the median of 1/2 and 2/2
    assert "not present" not in call("toy").output


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["latenzy"], "no bench 'latenzy': one of"),
        (["--pages", "3K"], "no page size '3K'"),
        (["--pages", ""], "no page size ''"),
        (["--threads", "0"], "0 is not in the range"),
        (["--threads", "two"], "'two' is not a valid integer"),
        (["--json", "/nowhere/at/all.json"], "no such folder: /nowhere/at"),
        (["--compare", "/nowhere/at/all.json"], "No such file or directory"),
        (["--frob"], "No such option"),
    ],
)
def test_bad_usage_exits_2(toy, words, said):
    done = call(*words)
    assert done.exit_code == 2
    assert said in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("words", [["latenzy"], ["--pages", "3K"], ["--threads", "0"],
                                   ["--compare", "/nowhere.json"], ["--frob"]])
def test_usage_errors_are_one_line(words):
    done = CliRunner().invoke(main, ["bench", *words])
    assert done.exit_code == 2
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""


def test_no_bar_where_there_is_no_terminal(toy):
    done = call("toy")
    assert done.stderr == ""
    assert "\x1b" not in done.stdout


def test_a_bar_on_a_terminal(python):
    """In a child that has a pseudo-terminal for stderr, the bar is drawn there and wiped away."""
    done = python("""
import os, pty, subprocess, sys
ours, theirs = pty.openpty()
child = subprocess.Popen(
    [sys.executable, "-m", "realmem", "bench", "latency", "--quick", "--pages", "4K"],
    stdout=subprocess.PIPE, stderr=theirs, stdin=subprocess.DEVNULL,
    env={**os.environ, "TERM": "xterm", "COLUMNS": "80"})
os.close(theirs)
drawn = b""
while True:
    try:
        part = os.read(ours, 65536)
    except OSError:
        break
    drawn += part
out = child.communicate()[0]
print(child.returncode, b"latency 0>" in drawn, b"Idle load latency" in out, b"latency 0>" in out)
""")
    assert done.stdout == "0 True True False\n", done.stderr


def of_samples(text):
    return ('{"schema": "realmem-bench/1", "host": {}, "peers": [], "results": [{"bench": "toy", '
            f'"metric": "load", "unit": "ns", "samples": [{text}]}}]}}')


@pytest.mark.parametrize("text", ["1e999", "1" + 400 * "0", "NaN", '"1"', ""],
                         ids=["inf", "long", "nan", "text", "none"])
def test_compare_refuses_samples_that_are_none(toy, tmp_path, text):
    path = tmp_path / "other.json"
    path.write_text(of_samples(text))
    done = call("--compare", str(path))
    assert done.exit_code == 2
    assert re.search("other.json: .*sample", done.stderr)


@pytest.mark.parametrize("text", ["", "{}", '{"schema": "x"}', "\x00\x01", "[1",
                                  pytest.param(100_000 * "[", id="deep")])
def test_compare_refuses_other_files(toy, tmp_path, text):
    path = tmp_path / "other.json"
    path.write_text(text)
    done = call("--compare", str(path))
    assert done.exit_code == 2
    assert "other.json: not" in done.stderr


def test_failed_job_exits_1_and_keeps_what_there_is(toy, monkeypatch, tmp_path):
    def fail(options):
        yield next(iter(results_of(options)))
        raise OSError("node 0 has no memory\nsecond line")

    monkeypatch.setattr(registry, "names", lambda: ("bad", "toy"))
    benches = {"bad": Bench("bad", "Bad", fail), "toy": toy}
    monkeypatch.setattr(registry, "get", benches.__getitem__)
    target = tmp_path / "out.json"
    done = call("all", "--json", str(target))
    assert done.exit_code == 1
    assert done.stderr == "Error: bench bad: node 0 has no memory\n"
    run = Run.load(target)
    assert len(run.results) == 1 + 4
    assert run.failures == {"bad": "node 0 has no memory"}
    assert "32K" in done.stdout             # the other bench ran and is shown


def test_output_folder_lost_meanwhile_exits_1(toy, tmp_path):
    done = call("toy", "--json", str(tmp_path))
    assert done.exit_code == 2              # a folder, seen before anything runs


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_tables_fit(width):
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    from realmem.bench.registry import Options

    bench_view.show_bench(console, "A toy", list(results_of(Options())))
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    for figure in ("1.00", "2.20", "8.80", "32K"):
        assert any(figure in line for line in lines)


@pytest.mark.parametrize("width", [40, 80, 200])
@pytest.mark.parametrize("nodes", [2, 3, 8])
def test_matrices_fit_and_lose_no_figure(width, nodes):
    results = [
        Result("toy", "load", "ns", (100.0 + 10 * cpu + memory,) * 3, cpu, memory,
               {"size_bytes": size}, () if cpu == memory else ("unverified",))
        for size in (4096, 8192) for cpu in range(nodes) for memory in range(nodes)
    ]
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    bench_view.show_bench(console, "A toy", results)
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= width
    for result in results:
        assert f"{result.median:.0f}" in text
        assert f"{result.cpu_node}>{result.memory_node}" in text
    assert "* unverified" in text.replace("\n", " ")


@pytest.mark.parametrize("width", [50, 60, 70, 80])
def test_bars_give_way_to_words(width):
    results = [
        Result("toy", "anonymous write", "ns", (float(ns),), 0, 0,
               {"pattern": pattern, "who": "realmem/kernel"})
        for ns, pattern in ((12345, "scattered"), (23456, "in order"))
    ]
    console = Console(file=io.StringIO(), width=width)
    bench_view.show_bench(console, "A toy", results)
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= width
    assert "scattered" in text
    assert "…" not in text


def test_kinds_of_figures_have_tables_of_their_own():
    results = [
        Result("toy", "alloc", "ns", (1.0,), 0, 0, {"order": 0}),
        Result("toy", "alloc", "ns", (2.0,), 0, 0, {"order": 3}),
        Result("toy", "copy", "GB/s", (7.0,), 0, 0, {"threads": 1}, higher_is_better=True),
        Result("toy", "copy", "GB/s", (8.0,), 0, 0, {"threads": 2}, higher_is_better=True),
    ]
    console = Console(file=io.StringIO(), width=80)
    bench_view.show_bench(console, "A toy", results)
    text = console.file.getvalue()
    assert "A toy: alloc, ns" in text
    assert "A toy: copy, GB/s" in text
    lines = [line for line in text.splitlines() if "order" in line or "threads" in line]
    assert len(lines) == 2


def test_sparkline():
    assert bench_words.sparkline([1, 10, 100, 1000]) == "▁▃▆█"
    assert bench_words.sparkline([5, 5]) == "▁▁"
    assert bench_words.sparkline([1, 2], ascii_only=True) == "_@"


def test_registry_has_what_the_package_has():
    assert registry.names()[:2] == ("latency", "bandwidth")
    for name in registry.names():
        assert registry.get(name).name == name
    with pytest.raises(KeyError):
        registry.get("nothing")


def a_run_of_every_bench():
    """The labels that the real benches use, with figures of the usual lengths."""
    for pages in ("4K", "2M"):
        for size in (1 << 14, 1 << 28):
            yield Result("latency", "load", "ns", (406.0, 404.0), 0, 0,
                         {"size_bytes": size, "pages": pages, "stride_bytes": 64})
    for metric in ("read", "triad"):
        for threads in (1, 2):
            yield Result("bandwidth", metric, "GB/s", (48.0, 47.3), 0, 0,
                         {"pages": "4K", "threads": threads, "array_bytes": 1 << 26})
    for order in (0, 10):
        yield Result("alloc", "alloc+free", "ns", (7.63, 7.7), 0, 0,
                     {"order": order, "threads": 1, "pattern": "pair", "state": "fresh"})
        yield Result("alloc", "alloc_pages_node", "ns", (12410.0, 12447.0), 0, 0,
                     {"order": order, "first_touch": True})
    yield Result("alloc", "get_free_pages+free_pages", "ns", (75.9, 76.4), 0, 0,
                 {"order": 0, "python": True})
    yield Result("alloc", "alloc_pages_bulk", "ns", (23.1, 23.2), 0, 0,
                 {"pages": 64, "python": True, "order": 0, "state": "fresh"})
    for unit, whose in (("ns", ("realmem", "kernel")),
                        ("ratio", ("realmem/floor", "realmem/kernel"))):
        for metric in ("anonymous write", "fork, mapped pages", "software first touch"):
            for pattern in ("in order", "scattered"):
                for who in whose:
                    yield Result("fault", metric, unit, (11394.0, 11402.0), 0, 0,
                                 {"order": 0, "pattern": pattern, "who": who})
    for wanted in ("idle", "90 %", "110 %"):
        for by in ("raw", "software MMU"):
            for metric in ("p50", "p99", "p99.9", "stores"):
                yield Result("pressure", metric, "1/s" if metric == "stores" else "ns",
                             (1.19e7, 1.2e7), 0, 0, {"wanted": wanted, "by": by})


def words_of(results):
    """Every word that a label has; a table may wrap between them, never inside."""
    for result in results:
        texts = [result.metric, *(v for v in result.params.values() if isinstance(v, str))]
        yield from (word for text in texts for word in split(text))


def split(text):
    """Give the words of a table."""
    return re.findall(r"[^\s│┃,;:]+", text)


@pytest.mark.parametrize("width", [60, 80])
@pytest.mark.parametrize("name", ["latency", "bandwidth", "alloc", "fault", "pressure"])
def test_no_word_of_a_bench_is_broken(name, width):
    results = [result for result in a_run_of_every_bench() if result.bench == name]
    console = Console(file=io.StringIO(), width=width)
    bench_view.show_bench(console, registry.get(name).title, results)
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= width
    said = set(split(text))
    assert {*words_of(results), "0>0"} <= said
    for result in results:
        assert bench_words.number(result.min) in said


@pytest.mark.parametrize("width", [60, 80])
def test_no_word_of_a_comparison_is_broken(width):
    results = tuple(a_run_of_every_bench())
    slower = tuple(replace(r, samples=tuple(9 * s for s in r.samples)) for r in results)
    console = Console(file=io.StringIO(), width=width)
    bench_view.show_comparison(console, compare(Run({}, results=results), Run({}, results=slower)))
    bench_view.show_peers(console, [
        PeerResult("bandwidth", "multichase", "anonymous", "GB/s", (1.0, 2.0), (2.0, 2.0)),
        PeerResult("alloc", "LLFree", "alloc+free", "ns", params={"pattern": "scattered"}),
    ])
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= width
    said = set(split(text))
    assert {*words_of(results), "9.00", "multichase", "anonymous", "scattered"} <= said


def test_help_names_every_bench():
    text = CliRunner().invoke(main, ["bench", "--help"]).output
    for name in registry.names():
        assert re.search(rf"^  {name} +{re.escape(registry.get(name).title)}$", text, re.M)


def test_a_file_that_cannot_be_made_is_refused_before_anything_runs(monkeypatch, tmp_path):
    monkeypatch.setattr("realmem.bench.run", lambda *args, **more: pytest.fail("it ran"))
    for path in ("/proc/realmem.json", "/sys/realmem.json", "/proc/version"):
        done = CliRunner().invoke(main, ["bench", "--json", path])
        assert (done.exit_code, done.stdout) == (2, "")
        assert done.stderr.startswith("realmem: Invalid value for '--json': ")
        assert path in done.stderr
        assert done.stderr.count("\n") == 1


def test_a_refused_call_leaves_no_file_and_keeps_what_was_there(toy, tmp_path):
    old = tmp_path / "old.json"
    old.write_text("kept")
    for path in (old, tmp_path / "new.json"):
        assert call("--json", str(path), "--compare", str(old)).exit_code == 2
    assert old.read_text() == "kept"
    assert [path.name for path in tmp_path.iterdir()] == ["old.json"]


def test_the_samples_are_kept_where_nobody_reads_the_tables(toy, tmp_path, monkeypatch):
    def gone(*args):
        raise BrokenPipeError

    monkeypatch.setattr(bench_view, "show_host", gone)
    target = tmp_path / "out.json"
    assert call("toy", "--json", str(target)).exit_code != 0
    assert len(Run.load(target).results) == 4
