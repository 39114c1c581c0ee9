"""
The machine underneath: what it has, what it allows, what it refuses.

What machines are made from is here, and costs well under 10 ms; ``realmem.host.survey`` tells
everything else.
"""

from __future__ import annotations

from realmem.host.topology import (
    HostNode,
    cpus_of,
    distance,
    nodes,
    present_cpus,
    usable_nodes,
)

__all__ = ["HostNode", "cpus_of", "distance", "nodes", "present_cpus", "usable_nodes"]
