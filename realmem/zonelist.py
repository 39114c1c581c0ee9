"""The order in which a node tries the others; compare mm/page_alloc.c:build_zonelists()."""

from __future__ import annotations

from collections.abc import Sequence

from realmem.layout import MAX_NR_ZONES

# Any number above every node's load: distance decides first, then load.
_DISTANCE_WEIGHT = 1024


def fallback_orders(
    distance: Sequence[Sequence[int]], has_memory: Sequence[bool], has_cpus: Sequence[bool]
) -> list[list[int]]:
    """
    Order the nodes with memory for each node: itself, then the nearest.

    Equally near nodes take turns over the nodes that fall back to them, so that the first
    choice does not bear all remote load.
    Compare mm/page_alloc.c:build_zonelists() => find_next_best_node().

    :param distance: distance[a][b] from node a to node b, 10 is local.
    :param has_memory: for each node, whether it has memory.
    :param has_cpus: for each node, whether it has CPUs; nodes without are preferred.
    :return: for each node, node ids in the order to try.
    """
    load = [0] * len(distance)
    orders = []
    for local in range(len(distance)):
        order: list[int] = []
        previous = local
        left = {node for node in range(len(distance)) if has_memory[node]}
        while left:
            best = _next_best(local, left, distance[local], has_cpus, load)
            # The first of each group of equally near nodes has carried one list more.
            if distance[local][best] != distance[local][previous]:
                load[best] += 1
            order.append(best)
            left.remove(best)
            previous = best
        orders.append(order)
    return orders


def _next_best(
    local: int,
    left: set[int],
    distance: Sequence[int],
    has_cpus: Sequence[bool],
    load: Sequence[int],
) -> int:
    if local in left:
        return local

    def cost(node: int) -> tuple[int, int]:
        near = distance[node] + (node < local) + bool(has_cpus[node])
        return near * _DISTANCE_WEIGHT + load[node], node

    return min(left, key=cost)


def build_zonelists(
    orders: Sequence[Sequence[int]], managed: Sequence[int]
) -> list[list[list[list[int]]]]:
    """
    Lay out every zonelist.

    :param orders: node ids in the order to try, for each node.
    :param managed: managed pages by zone index (nid * MAX_NR_ZONES + kind).
    :return: for each node, [with fallback, this node only], each by the highest kind of zone
        that the request may use: zone indexes in the order to try, empty zones left out.
    """
    return [
        [
            [_zones(nodes, highest, managed) for highest in range(MAX_NR_ZONES)]
            for nodes in (order, [nid])
        ]
        for nid, order in enumerate(orders)
    ]


def _zones(nodes: Sequence[int], highest: int, managed: Sequence[int]) -> list[int]:
    return [
        node * MAX_NR_ZONES + kind
        for node in nodes
        for kind in range(highest, -1, -1)
        if managed[node * MAX_NR_ZONES + kind]
    ]
