"""The only join of VMAs with the kernel side: plan aside, commit in one step."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from realmem._core.mm import AddressSpace as Core
from realmem._core.mmu import Mmu
from realmem.errors import HostError, OutOfMemory
from realmem.layout import PAGE_SHIFT, PAGE_SIZE
from realmem.mm.limits import CAPABILITIES, Capabilities, Limits
from realmem.mm.plan import Plan
from realmem.mm.populate import mm_populate
from realmem.mm.settings import VmSettings
from realmem.mm.tree import VmaTree
from realmem.mm.vma import VM_DONTCOPY, VM_LOCKED_MASK, VM_MERGEABLE, VM_NOHUGEPAGE, Vma

# Below the window's top, as a stack would have it (arch/x86/mm/mmap.c:mmap_base()).
STACK_GAP = 128 << 20
# Above the window's bottom; program text and data would lie below the heap.
HEAP_GAP = 16 << 20
# Of the flags of mappings to come, what a child gets (VM_INIT_DEF_MASK; PR_SET_MEMORY_MERGE).
INHERITED = VM_NOHUGEPAGE | VM_MERGEABLE

Result = TypeVar("Result")


class MemoryMap:
    """
    A process's VMAs together with the page tables and the windows under them.

    ``lock`` serialises Python-level changes; kernel-side locks are taken below it, in one call
    that runs no bytecode.

    :ivar core: the kernel side's face.
    :ivar settings: the machine's sysctls.
    :ivar rlimit: the process's limits.
    :ivar capabilities: the process's capabilities, by name.
    :ivar start_stack: where the first stack begins; 0, since a process begins without one.
    :ivar thp_disabled: PR_SET_THP_DISABLE: 0, 1, or 3 with PR_THP_DISABLE_EXCEPT_ADVISED.
    """

    def __init__(
        self,
        core: Any,
        settings: VmSettings,
        *,
        rlimit: Mapping[str, int] | None = None,
        capabilities: Iterable[str] = CAPABILITIES,
        thp_disabled: int = 0,
    ) -> None:
        self.core = core
        self.settings = settings
        self.rlimit = Limits(core, rlimit)
        self.capabilities = Capabilities(core, capabilities)
        self.start_stack = 0
        self.thp_disabled = 0
        if thp_disabled:
            self.disable_thp(thp_disabled)
        self.lock = threading.RLock()

    @classmethod
    def new(
        cls, mmu: Mmu, pid: int, node: int | None, window: int, settings: VmSettings, uid: int
    ) -> MemoryMap:
        """Make an empty address space."""
        core: Any = Core(mmu, pid, -1 if node is None else node, window)
        mm = cls(core, settings, capabilities=CAPABILITIES if uid == 0 else ())
        core.tree = VmaTree(brk=mm.start_brk)
        return mm

    # ---- layout ----

    @property
    def low(self) -> int:
        """The lowest address of the default window."""
        return int(self.core.user_start)

    @property
    def high(self) -> int:
        """One past the highest address of the default window."""
        return int(self.core.user_start + self.core.length)

    @property
    def mmap_base(self) -> int:
        """Where the search for room begins, going down."""
        return self.high - STACK_GAP

    @property
    def start_brk(self) -> int:
        """Where the heap begins, going up."""
        return self.low + HEAP_GAP

    def disable_thp(self, how: int) -> None:
        """Set ``thp_disabled``, for faults too."""
        self.core.set_thp_disabled(how)
        self.thp_disabled = how

    def capable(self, name: str) -> bool:
        """Whether the process has a capability."""
        return name in self.capabilities

    # ---- VMAs ----

    @property
    def tree(self) -> VmaTree:
        """The VMAs as published, grown stacks included."""
        with self.lock:
            self._take_growth()
            tree: VmaTree = self.core.tree
            return tree

    def find_vma(self, addr: int) -> Vma | None:
        """Give the VMA that holds ``addr`` or the next one above."""
        return self.tree.find(addr)

    def _take_growth(self) -> None:
        """Take in how far faults grew stacks; the kernel side says it until the tree shows it."""
        grown: list[tuple[int, int]] = self.core.sync()
        if not grown:
            return
        tree: VmaTree = self.core.tree
        for end, start in grown:
            vma = tree.prev(end)
            if vma is not None and vma.end == end:
                tree = tree.replace(vma.start, end, [vma.piece(start, end)])
        self.core.tree = tree

    def change(self, planner: Callable[[Plan], Result]) -> Result:
        """
        Plan a change and make it, on both sides or on neither.

        Where the planner raises OSError, what it had planned before is made, as Linux would have
        done it by then; any other exception changes nothing.  It may run several times.

        :raises OSError: the planner's; ENOMEM.
        :raises ProcessLookupError: the process exited.
        """
        with self.lock:
            self.core.check_alive()
            limit: int | None = None
            while True:
                self._take_growth()
                plan = Plan(self, limit)
                refusal: OSError | None = None
                try:
                    result = planner(plan)
                except OSError as error:
                    refusal = error
                try:
                    if plan.tree is not plan.before or plan.steps:
                        if not self._commit(plan):
                            continue        # a fault came in between
                except OSError as error:
                    if error.errno != errno.ENOMEM or plan.charge <= 0:
                        raise
                    # Perhaps the charge: do what Linux has done by the one that is too much.
                    limit = plan.charge - 1
                    continue
                break
            for start, end in plan.populate:
                mm_populate(self, start, end)
            self.core.mmu.rest_files()
            if refusal is not None:
                raise refusal
        return result

    def _commit(self, plan: Plan) -> bool:
        low, high = self.low, self.high
        for step in plan.steps:
            if step[0] == "vmas":
                for vma, _ in step[3]:
                    if vma.start < low or vma.end > high:
                        self.core.cover(vma.start, vma.end)
        return bool(
            self.core.commit(
                plan.steps, plan.tree, tuple(plan.deltas), plan.generation, plan.charge
            )
        )

    # ---- life ----

    def fork(self, pid: int, node: int | None) -> MemoryMap:
        """
        Make a copy-on-write copy (kernel/fork.c:dup_mmap()).

        :raises OSError: ENOMEM, no frames for the child's page tables, or overcommit.
        :raises HostError: no host address space for its window.
        """
        with self.lock:
            self._take_growth()
            turn = 0
            while True:
                try:
                    return self._fork(pid, node)
                except OSError as why:
                    if isinstance(why, HostError) or why.errno != errno.ENOMEM or (
                        not self.core.mmu.try_again(turn)
                    ):
                        raise
                turn += 1

    def _fork(self, pid: int, node: int | None) -> MemoryMap:
        try:
            core = Core(self.core.mmu, pid, -1 if node is None else node, self.core.length)
        except OutOfMemory as why:
            raise OSError(errno.ENOMEM, "cannot allocate memory") from why
        try:
            if core.user_start != self.core.user_start:
                raise HostError(
                    errno.ENOMEM, "the host has no room for a window as long as the parent's"
                )
            child = MemoryMap(
                core,
                self.settings,
                rlimit=self.rlimit,
                capabilities=self.capabilities,
                thp_disabled=self.thp_disabled,
            )
            self.core.fork_into(core, forked_tree(self.core.tree))
        except BaseException:
            core.exit()
            raise
        return child

    def close(self, live: dict[int, Any] | None = None) -> None:
        """Give everything back, and leave the live ones in the same step."""
        self.core.exit(live)
        self.core.mmu.rest_files()


def forked_tree(tree: VmaTree) -> VmaTree:
    """
    Give the VMAs that a child gets: the parent's tree itself, where nothing differs.

    Left out are those with MADV_DONTFORK; locks, and mlockall()'s promise for mappings to come,
    are not inherited.
    """
    if tree.seen & (VM_DONTCOPY | VM_LOCKED_MASK):
        vmas = [
            vma.with_flags(vma.vm_flags_word & ~VM_LOCKED_MASK)
            if vma.vm_flags_word & VM_LOCKED_MASK
            else vma
            for vma in tree
            if not vma.vm_flags_word & VM_DONTCOPY
        ]
        tree = VmaTree.of(vmas, tree.brk, tree.def_flags)
    kept = tree.def_flags & INHERITED
    return tree.with_def_flags(kept) if kept != tree.def_flags else tree


def is_aligned(addr: int) -> bool:
    """Whether an address begins a page."""
    return addr % PAGE_SIZE == 0


__all__ = ["PAGE_SHIFT", "MemoryMap", "forked_tree", "is_aligned"]
