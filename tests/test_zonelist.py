"""The order of nodes and zones; the guests of make test-numa compare it with a kernel's own."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from realmem.zonelist import build_zonelists, fallback_orders


@st.composite
def topologies(draw):
    n = draw(st.integers(1, 8))
    distance = [[10] * n for _ in range(n)]
    for a in range(n):
        for b in range(a):
            distance[a][b] = distance[b][a] = draw(st.sampled_from([12, 16, 20, 21, 32]))
    memory = draw(st.lists(st.booleans(), min_size=n, max_size=n))
    memory[draw(st.integers(0, n - 1))] = True
    cpus = draw(st.lists(st.booleans(), min_size=n, max_size=n))
    return distance, memory, cpus


@given(topologies())
def test_every_node_with_memory_stands_once_and_nearer_ones_first(topology):
    distance, memory, cpus = topology
    for local, order in enumerate(fallback_orders(distance, memory, cpus)):
        assert sorted(order) == [node for node, has in enumerate(memory) if has]
        if memory[local]:
            assert order[0] == local
        rest = [node for node in order if node != local]
        # A node below the local one and a node with CPUs count as one further each.
        near = [distance[local][node] + (node < local) + cpus[node] for node in rest]
        assert near == sorted(near)


@pytest.mark.conformance("BD-20")
def test_equally_near_nodes_share_the_remote_load():
    flat = [[10 if a == b else 20 for b in range(4)] for a in range(4)]
    orders = fallback_orders(flat, [True] * 4, [True] * 4)
    assert [order[0] for order in orders] == [0, 1, 2, 3]
    assert orders == [[0, 1, 2, 3], [1, 2, 3, 0], [2, 3, 0, 1], [3, 0, 1, 2]]


def test_a_ring_falls_back_to_its_neighbours():
    ring = [[10, 16, 22, 16], [16, 10, 16, 22], [22, 16, 10, 16], [16, 22, 16, 10]]
    for local, order in enumerate(fallback_orders(ring, [True] * 4, [True] * 4)):
        assert order[-1] == (local + 2) % 4


def test_a_node_without_memory_starts_at_its_nearest():
    distance = [[10, 20, 30], [20, 10, 20], [30, 20, 10]]
    orders = fallback_orders(distance, [True, True, False], [True] * 3)
    assert orders[2] == [1, 0]


def test_zones_go_from_the_highest_allowed_down_and_skip_empty_ones():
    managed = [100, 200, 0, 50, 0, 300, 400, 0]
    lists = build_zonelists([[0, 1], [1, 0]], managed)
    assert lists[0][0] == [[0], [1, 0, 5], [1, 0, 6, 5], [3, 1, 0, 6, 5]]
    assert lists[0][1] == [[0], [1, 0], [1, 0], [3, 1, 0]]
    assert lists[1][1] == [[], [5], [6, 5], [6, 5]]
