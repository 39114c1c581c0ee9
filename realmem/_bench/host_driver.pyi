from collections.abc import Iterable

LOW: int
CODE_PAGES: int
DATA_PAGES: int
IN: int
OUT: int

def become(first_fd: int, brk: int, ranges: Iterable[tuple[int, int]]) -> None: ...
