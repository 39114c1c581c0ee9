from typing import Any

HOW: tuple[str, ...]

def floor(
    n: int,
    how: str,
    order: int = 0,
    pages: Any = None,
    copies: bool = False,
    zeroes: bool = False,
    same: bool = False,
) -> float: ...
def floor_calls() -> dict[str, int]: ...
def write_protect(at: int, n: int) -> float: ...
