from types import TracebackType

from realmem._core.machine import MachineCore

POINTS: tuple[str, ...]

class Injection:
    def __init__(
        self,
        core: MachineCore,
        point: int,
        nth: int,
        probability: float,
        times: int,
        seed: int,
    ) -> None: ...
    def __enter__(self) -> Injection: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> None: ...
    @property
    def attempts(self) -> int: ...
    @property
    def failures(self) -> int: ...
