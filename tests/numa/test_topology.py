"""What the guest's kernel says of its nodes; the ground the other tests stand on."""

from pathlib import Path

import pytest

NODES = Path("/sys/devices/system/node")


@pytest.mark.numa(nodes=2)
def test_more_than_one_node():
    assert len(list(NODES.glob("node[0-9]*"))) >= 2
