"""The JSON of a run comes back as it went; what is no run is refused by name."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from realmem import schema
from realmem.bench import facts
from realmem.bench.results import SCHEMA, STAMPS, PeerResult, Result, Run

words = st.text("abcdefghij_ 0123é", min_size=1, max_size=12)
values = words | st.integers(-(2**40), 2**40) | st.booleans() | st.floats(-1e9, 1e9)
params = st.dictionaries(words, values, max_size=4)
finite = st.floats(allow_nan=False, allow_infinity=False)
nodes = st.none() | st.integers(0, 1023)

results = st.builds(
    Result,
    bench=words,
    metric=words,
    unit=words,
    samples=st.lists(finite, min_size=1, max_size=9).map(tuple),
    cpu_node=nodes,
    memory_node=nodes,
    params=params,
    stamps=st.sets(st.sampled_from(STAMPS)).map(sorted).map(tuple),
    higher_is_better=st.booleans(),
    note=words,
)
rounds = st.lists(st.tuples(st.floats(1e-3, 1e9), st.floats(1e-3, 1e9)), max_size=5)
peers = st.builds(
    lambda bench, metric, both, params: PeerResult(
        bench, "peer", metric, "ns", tuple(a for a, _ in both), tuple(b for _, b in both), params
    ),
    words, words, rounds, params,
)
runs = st.builds(
    Run,
    host=st.dictionaries(words, values, max_size=3),
    options=st.dictionaries(words, values, max_size=3),
    results=st.lists(results, max_size=4).map(tuple),
    peers=st.lists(peers, max_size=3).map(tuple),
    failures=st.dictionaries(words, words, max_size=2),
    seconds=st.floats(0, 1e6),
)


@given(runs)
def test_round_trip(run):
    assert Run.from_json(json.loads(json.dumps(run.to_json()))) == run


@given(results)
def test_summary_is_of_the_samples(result):
    data = result.to_json()
    low, middle, high = (data["summary"][name] for name in ("min", "median", "p95"))
    assert low == min(data["samples"])
    assert low <= middle <= high <= max(data["samples"])
    assert result.best == (max if result.higher_is_better else min)(result.samples)


def test_save_and_load(tmp_path):
    run = Run(facts.host_facts(), results=(Result("b", "m", "ns", (1.0, 2.5)),), seconds=1.5)
    run.save(tmp_path / "run.json")
    assert Run.load(tmp_path / "run.json") == run


@given(runs)
def test_runs_follow_the_published_schema(run):
    follows(json.loads(json.dumps(run.to_json())), schema.BENCH)


def follows(value, rule):
    """Check a value against a JSON Schema, as far as realmem.schema uses that language."""
    if "anyOf" in rule:
        assert any(accepts(value, each) for each in rule["anyOf"]), (value, rule)
    elif rule.get("type") == "array":
        assert isinstance(value, list)
        for item in value:
            follows(item, rule["items"])
    elif rule.get("type") == "object":
        assert set(rule.get("required", ())) <= set(value)
        for name, item in value.items():
            default = rule.get("additionalProperties", {})
            follows(item, rule.get("properties", {}).get(name, default))
    elif rule:
        assert accepts(value, rule), (value, rule)


def accepts(value, rule):
    kinds = {"string": str, "integer": int, "number": (int, float), "boolean": bool,
             "null": type(None)}
    number = rule["type"] in ("integer", "number")
    return isinstance(value, kinds[rule["type"]]) and not (number and isinstance(value, bool))


def test_a_run_that_breaks_the_schema_is_noticed():
    with pytest.raises(AssertionError):
        follows(changed(samples=["1"]), schema.BENCH)
    with pytest.raises(AssertionError):
        follows(changed(unit=...), schema.BENCH)


def test_host_facts_are_all_there():
    host = facts.host_facts()
    assert host["nodes"] and host["nodes"][0]["memory_bytes"] > 0
    assert len(host["load_average"]) == 3
    for name in ("kernel", "cpu_model", "clock_source", "cpus_allowed", "realmem", "time"):
        assert name in host
    json.dumps(host, allow_nan=False)


GOOD = Run({}, results=(Result("b", "m", "ns", (1.0,)),)).to_json()


def changed(**parts):
    result = {**GOOD["results"][0], **parts}
    return {**GOOD, "results": [{k: v for k, v in result.items() if v is not ...}]}


@pytest.mark.parametrize(
    ("data", "said"),
    [
        pytest.param([], "not a realmem-bench", id="list"),
        pytest.param({}, "not a realmem-bench", id="no schema"),
        pytest.param({**GOOD, "schema": "realmem-bench/0"}, "not a realmem-bench", id="older"),
        pytest.param({"schema": SCHEMA}, "results: not a list", id="empty"),
        pytest.param({**GOOD, "results": [7]}, "not an object", id="number"),
        pytest.param({**GOOD, "more": 1}, "unknown field 'more'", id="unknown"),
        pytest.param(changed(samples=[]), "without samples", id="no samples"),
        pytest.param(changed(samples=["1"]), "samples", id="text sample"),
        pytest.param(changed(samples=[True]), "samples", id="bool sample"),
        pytest.param(changed(unit=None), "unit", id="no unit"),
        pytest.param(changed(unit=...), "unit", id="unit missing"),
        pytest.param(changed(stamps=["sure"]), "unknown stamp 'sure'", id="stamp"),
        pytest.param(changed(cpu_node=1.5), "cpu_node", id="half a node"),
        pytest.param(changed(params={"a": None}), "params", id="param"),
        pytest.param(changed(higher_is_better=1), "higher_is_better", id="not a bool"),
    ],
)
def test_from_json_refuses(data, said):
    with pytest.raises(ValueError, match=said):
        Run.from_json(data)


def test_results_refuse_what_no_measurement_gives():
    with pytest.raises(ValueError, match="finite"):
        Result("b", "m", "ns", (1.0, float("nan")))
    with pytest.raises(ValueError, match="unequal"):
        PeerResult("b", "p", "m", "ns", (1.0, 2.0), (1.0,))
    with pytest.raises(ValueError, match="positive"):
        PeerResult("b", "p", "m", "ns", (0.0,), (1.0,))


def test_peer_ratio_is_paired():
    peer = PeerResult("b", "p", "m", "ns", (1.0, 20.0, 300.0), (1.0, 10.0, 100.0))
    assert peer.ratios == (1.0, 2.0, 3.0)
    assert peer.ratio == 2.0
    assert peer.spread == 99.0
    assert not PeerResult("b", "p", "m", "ns").present
