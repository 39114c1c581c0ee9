from collections.abc import Sequence
from typing import Final

from realmem._bench.target import Allocator

PATTERNS: Final[dict[str, int]]

class Session:
    def __init__(self, threads: int, rounds: int) -> None: ...
    def add(
        self,
        allocator: Allocator,
        pattern: str,
        order: int,
        threads: int,
        held: int,
        turns: int,
        shuffle: Sequence[int] | None = None,
    ) -> int: ...
    def prepare(self) -> None: ...
    def stop(self) -> None: ...
    def work(self, index: int) -> None: ...
    def samples(self, row: int) -> tuple[list[float], list[float]]: ...
