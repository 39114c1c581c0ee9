"""p.rlimit, p.capabilities, p.oom_score_adj, p.mems_allowed."""

from __future__ import annotations

import errno

import pytest
from fake_core import fake_map

from realmem.layout import RLIM_INFINITY
from realmem.machine import Machine
from realmem.mm.limits import CAPABILITIES


def test_limits_reach_the_kernel_side():
    mm = fake_map()
    assert dict(mm.rlimit) == {
        "AS": RLIM_INFINITY,
        "DATA": RLIM_INFINITY,
        "STACK": 8 << 20,
        "MEMLOCK": 8 << 20,
    }
    assert mm.core.limits == dict(mm.rlimit)
    mm.rlimit["STACK"] = "64K"
    assert mm.core.limits["STACK"] == mm.rlimit["STACK"] == 65536
    mm.rlimit["STACK"] = 4096
    assert mm.core.limits["STACK"] == mm.rlimit["STACK"] == 4096
    for wrong in (-1, RLIM_INFINITY + 1, "8X"):
        with pytest.raises(ValueError):
            mm.rlimit["STACK"] = wrong
    with pytest.raises(TypeError):
        mm.rlimit["STACK"] = 1.5
    with pytest.raises(KeyError):
        mm.rlimit["NOFILE"] = 1
    with pytest.raises(TypeError):
        del mm.rlimit["AS"]
    assert mm.core.limits == dict(mm.rlimit)


def test_capabilities_are_a_set_of_known_names():
    mm = fake_map()
    assert mm.capabilities == CAPABILITIES and mm.core.capabilities == (True, True)
    assert len(CAPABILITIES) == 41
    mm.capabilities.remove("CAP_IPC_LOCK")
    assert mm.core.capabilities == (False, True) and not mm.capable("CAP_IPC_LOCK")
    mm.capabilities -= {"CAP_SYS_ADMIN"}
    assert mm.core.capabilities == (False, False)
    assert mm.capabilities | {"CAP_IPC_LOCK"} == CAPABILITIES - {"CAP_SYS_ADMIN"}
    mm.capabilities.clear()
    mm.capabilities.add("CAP_IPC_LOCK")
    assert set(mm.capabilities) == {"CAP_IPC_LOCK"} and mm.core.capabilities == (True, False)
    with pytest.raises(ValueError, match="CAP_FLY"):
        mm.capabilities.add("CAP_FLY")
    with pytest.raises(KeyError):
        mm.capabilities.remove("CAP_SYS_ADMIN")


def test_of_a_process_and_its_child():
    with Machine(nodes=2, memory="32M", window="1G") as machine:
        root, user = machine.spawn(), machine.spawn(uid=1000)
        assert root.capabilities == CAPABILITIES and not user.capabilities
        root.capabilities = {"CAP_SYS_NICE"}
        root.rlimit["MEMLOCK"] = 0
        root.oom_score_adj = 500
        child = root.fork()
        assert child.capabilities == {"CAP_SYS_NICE"} and child.rlimit["MEMLOCK"] == 0
        assert child.oom_score_adj == 500 and child.mems_allowed == {0, 1}
        child.rlimit["MEMLOCK"] = 4096
        child.capabilities.clear()
        child.oom_score_adj = 600
        assert root.capabilities == {"CAP_SYS_NICE"} and root.rlimit["MEMLOCK"] == 0
        for value, number in ((1001, errno.EINVAL), (-1001, errno.EINVAL), (0, errno.EACCES)):
            with pytest.raises(OSError) as caught:
                child.oom_score_adj = value
            assert caught.value.errno == number
        assert child.oom_score_adj == 600
        child.exit()
        with pytest.raises(ProcessLookupError):
            child.rlimit["AS"] = 1
        with pytest.raises(ProcessLookupError):
            child.capabilities.add("CAP_SYS_NICE")
