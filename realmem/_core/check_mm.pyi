from collections.abc import Iterable

from realmem._core.mmu import Mmu
from realmem._core.space import Space

MESSAGES: tuple[str, ...]

def space_id(space: Space) -> int: ...
def check_spaces(mmu: Mmu, spaces: Iterable[Space]) -> None: ...
