# cython: language_level=3
# Plain built-in methods: a call from Python costs half of what Cython's own kind does.
# cython: binding=False, embedsignature=True, embedsignature.format=clinic
"""The vmalloc area's face: vmalloc, vfree, vmap and their kin."""
import sys

cimport cython
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc

from realmem._core.arguments cimport as_gfp, as_int, as_size
from realmem._core.vmap_space cimport VmapSpace, as_address
from realmem._kernel.mm_types cimport (
    VM_ALLOC, VM_MAP, VMALLOC_MAX_SHIFT, VMAP_CALLER, VMAP_DEFERRED, VMAP_RAM,
)
from realmem._kernel.vmap cimport (
    VMAP_CLOSED, VMAP_FREED, VMAP_INTERIOR, VMAP_NO_SPACE, VMAP_NOWHERE, VMAP_OK,
    VMAP_OTHER_KIND, VMAP_UNALIGNED, vmalloc_range, vmap_defer, vmap_frames, vmap_free,
    vmap_purge,
)
from realmem.compiler cimport unlikely
from realmem.types cimport GFP_KERNEL, GFP_ZERO, PAGE_SHIFT, PAGE_SIZE, page_to_pfn

from realmem.errors import AllocatorError, OutOfMemory
from realmem.layout import GFP, PROT_READ, PROT_WRITE, describe_gfp

KINDS = {VM_ALLOC: "vmalloc()", VM_MAP: "vmap()", VMAP_RAM: "vm_map_ram()"}
ENDS = {VM_ALLOC: "vfree()", VM_MAP: "vunmap()", VMAP_RAM: "vm_unmap_ram()"}


@cython.no_gc_clear
cdef class VmallocSpace(VmapSpace):
    """
    Allocation in a machine's vmalloc area; its bound methods are the machine's own.

    See VmapSpace for the parameters.
    """

    # ---- getting memory ----

    def vmalloc(self, size, gfp=GFP_KERNEL, align=1):
        """
        Allocate memory whose addresses follow each other, from frames that need not.

        Compare mm/vmalloc.c:vmalloc() => __vmalloc_node_range().

        :param size: bytes, or a size such as ``"64M"``; rounded up to pages.
        :param gfp: what the caller allows.
        :param align: a power of two that the address is to be a multiple of.
        :return: the address, a multiple of a page; a guard page follows the last one.
        :raises OutOfMemory: no frames, or no addresses; nothing is taken then.
        :raises ValueError: a size or alignment that could never be had.
        :raises AtomicContextError: in atomic_context(), whatever the flags.
        """
        return self.allocate(size, as_gfp(gfp), -1, align)

    def vzalloc(self, size, gfp=GFP_KERNEL):
        """Allocate zeroed memory; compare mm/vmalloc.c:vzalloc().  Else as vmalloc()."""
        return self.allocate(size, as_gfp(gfp) | GFP_ZERO, -1, 1)

    def vmalloc_node(self, size, node, gfp=GFP_KERNEL, align=1):
        """
        Allocate memory from node ``node`` first.

        Compare mm/vmalloc.c:vmalloc_node().  Else as vmalloc().

        :param size: bytes or a size.
        :param node: node id; None or -1 means the calling CPU's.
        :param gfp: what the caller allows.
        :param align: a power of two.
        """
        return self.allocate(size, as_gfp(gfp), self.core.as_nid(node), align)

    def vzalloc_node(self, size, node, gfp=GFP_KERNEL):
        """Allocate zeroed memory from a node first; compare mm/vmalloc.c:vzalloc_node()."""
        return self.allocate(size, as_gfp(gfp) | GFP_ZERO, self.core.as_nid(node), 1)

    cdef object allocate(self, size, uint32_t gfp, int nid, align):
        cdef uint64_t wanted, to
        cdef uint64_t addr = 0
        cdef int rc
        self.core.usable()
        wanted = self.bounded_size(size)
        to = self.as_align(align)
        self.may_sleep("vmalloc()")
        self.settle()
        self.core.busy += 1
        with nogil:
            rc = vmalloc_range(&self.space, wanted, to, gfp, nid, VMAP_CALLER, &addr)
        self.core.busy -= 1
        if unlikely(rc != VMAP_OK):
            self.raise_failure(rc, wanted, gfp, nid)
        if unlikely(self.core.m.nr_bad_pages != self.core.bad_pages_seen):
            with nogil:
                vmap_free(&self.space, addr, VM_ALLOC, 0)
            self.core.check_bad_pages()
        self.callers[addr] = who_calls()
        return self.host(addr)

    # ---- giving it back ----

    def vfree(self, addr):
        """
        Free what vmalloc() gave.

        An access after it is a segmentation fault, raised as SegmentationFault.
        In atomic_context() it is put off to the context's end.  Compare mm/vmalloc.c:vfree().

        :param addr: the address; 0 or None does nothing.
        :raises AllocatorError: not such an address, or freed already; nothing is changed.
        """
        cdef uint64_t at = as_address(addr)
        cdef uint64_t kernel
        cdef int rc
        self.core.usable()
        if at == 0:
            return
        if unlikely(self.in_atomic()):
            kernel = self.kernel(at)
            rc = vmap_defer(&self.space, kernel) if self.mmu is not None else VMAP_NOWHERE
            if rc != VMAP_OK:
                self.raise_bad(rc, at, VM_ALLOC)
            self.deferred.append(kernel)
            self.core.after_atomic = self.run_deferred
            return
        self.end(at, VM_ALLOC, 0)

    # ---- mapping frames ----

    def vmap(self, pages, prot=PROT_READ | PROT_WRITE):
        """
        Map frames one after the other.

        A reference is held to each, so that none is freed under the mapping.
        Compare mm/vmalloc.c:vmap().

        :param pages: a sequence of Page objects, in the order to map them.
        :param prot: PROT_READ, or with PROT_WRITE.
        :return: the address; a guard page follows the last one.
        :raises ValueError: no pages, or one that is not allocated.
        :raises AllocatorError: a page of another machine.
        """
        return self.map_frames(pages, VM_MAP, prot)

    def vunmap(self, addr):
        """
        Undo vmap(); the frames stay their owner's.  Compare mm/vmalloc.c:vunmap().

        :param addr: the address; 0 or None does nothing.
        :raises AllocatorError: not such an address, or unmapped already.
        :raises AtomicContextError: in atomic_context().
        """
        cdef uint64_t at = as_address(addr)
        self.core.usable()
        self.may_sleep("vunmap()")
        if at != 0:
            self.end(at, VM_MAP, 0)

    def vm_map_ram(self, pages, node=None):
        """
        Map frames for a short time, without a guard page.  Compare mm/vmalloc.c:vm_map_ram().

        :param pages: a sequence of Page objects.
        :param node: where Linux keeps its records; of no effect.
        :raises ValueError: no pages, or one that is not allocated.
        """
        self.core.as_nid(node)
        return self.map_frames(pages, VMAP_RAM, PROT_READ | PROT_WRITE)

    def vm_unmap_ram(self, addr, count):
        """
        Undo vm_map_ram(); compare mm/vmalloc.c:vm_unmap_ram().

        :param addr: the address.
        :param count: pages that were mapped.
        :raises AllocatorError: not such an address, or not so many pages.
        """
        cdef uint64_t at = as_address(addr)
        cdef int64_t pages = as_int(count, "count")
        self.core.usable()
        self.may_sleep("vm_unmap_ram()")
        if pages <= 0:
            raise ValueError(f"count must be positive: {count}")
        self.end(at, VMAP_RAM, pages)

    cdef object map_frames(self, pages, uint64_t kind, prot):
        cdef uint64_t* pfns
        cdef uint64_t n, i
        cdef uint64_t addr = 0
        cdef bint writable
        cdef int rc
        self.core.usable()
        if prot not in (PROT_READ, PROT_READ | PROT_WRITE):
            raise ValueError(f"prot must be PROT_READ or PROT_READ | PROT_WRITE, not {prot!r}")
        writable = prot != PROT_READ
        self.may_sleep(KINDS[kind])
        found = [page_to_pfn(self.core.m, self.core.page_at(one)) for one in pages]
        n = len(found)
        if not 0 < n <= self.total_pages:
            raise ValueError(f"{n} pages to map: at least 1, at most all that there are")
        self.settle()
        pfns = <uint64_t*>malloc(n * sizeof(uint64_t))
        if pfns == NULL:
            raise MemoryError
        try:
            for i in range(n):
                pfns[i] = found[i]
                self.core.check_allocated(pfns[i], pfns[i] + 1)
            # With the GIL: nobody frees one of them after it was checked.
            rc = vmap_frames(&self.space, pfns, n, kind, writable, &addr)
        finally:
            free(pfns)
        if rc != VMAP_OK:
            self.raise_failure(rc, n << PAGE_SHIFT, GFP_KERNEL, -1)
        self.callers[addr] = who_calls()
        return self.host(addr)

    cdef int end(self, uint64_t at, uint64_t kind, uint64_t pages) except -1:
        cdef uint64_t addr = self.kernel(at)
        cdef int rc = VMAP_NOWHERE
        if self.mmu is not None:
            if self.deferred:
                self.run_deferred()
            self.core.busy += 1
            with nogil:
                rc = vmap_free(&self.space, addr, kind, pages)
            self.core.busy -= 1
        if rc != VMAP_OK:
            self.raise_bad(rc, at, kind)
        self.callers.pop(addr, None)
        return 0

    def run_deferred(self):
        """Free what vfree() was asked for in atomic context, unless that still lasts."""
        cdef uint64_t addr
        self.core.after_atomic = None
        if not self.deferred:
            return
        try:
            self.core.alive()
        except ValueError:              # closed, or inherited by a fork
            return
        while self.deferred and not self.in_atomic():
            addr = self.deferred.pop()
            self.core.busy += 1
            with nogil:
                vmap_free(&self.space, addr, VM_ALLOC | VMAP_DEFERRED, 0)
            self.core.busy -= 1
            self.callers.pop(addr, None)

    def vm_unmap_aliases(self):
        """
        Make the addresses of freed areas free to use; compare mm/vmalloc.c:vm_unmap_aliases().

        It happens by itself when enough of them wait, or no others are left.
        """
        self.core.usable()
        self.may_sleep("vm_unmap_aliases()")
        if self.mmu is not None:
            self.run_deferred()
            vmap_purge(&self.space)

    # Have addresses, and nothing left to free.
    cdef int settle(self) except -1:
        self.ready()
        if unlikely(len(self.deferred) != 0):
            self.run_deferred()
        return 0

    # ---- arguments and refusals ----

    cdef uint64_t bounded_size(self, size) except 0:
        cdef int64_t value = as_size(size, "size")
        if value <= 0:
            raise ValueError(f"size must be positive: {size}")
        if <uint64_t>value > self.total_pages << PAGE_SHIFT:
            raise ValueError(f"size {size} exceeds the {self.total_pages} pages that there are")
        return value

    cdef uint64_t as_align(self, align) except 0:
        cdef int64_t value = as_int(align, "align")
        if value <= 0 or value & (value - 1):
            raise ValueError(f"align must be a power of two: {align}")
        if value > <int64_t>1 << VMALLOC_MAX_SHIFT:
            raise ValueError(f"align {align} is more than the whole vmalloc area")
        return max(value, PAGE_SIZE)

    cdef int raise_failure(self, int rc, uint64_t size, uint32_t gfp, int nid) except -1:
        if rc == VMAP_CLOSED:
            raise ValueError("this machine is closed")
        self.core.check_bad_pages()
        machine = self.core.owner()
        why = "no page could be allocated"
        if rc == VMAP_NO_SPACE:
            why = f"no such range is free in the {self.length >> 20} MiB of addresses"
        raise OutOfMemory(
            f"vmalloc error: size {size}, {why}, mode:{gfp:#x}({describe_gfp(gfp)}), "
            f"node:{'any' if nid < 0 else nid}",
            order=0, gfp=GFP(gfp), node=None if nid < 0 else nid,
            report=None if machine is None else machine.show_mem)

    cdef int raise_bad(self, int rc, uint64_t at, uint64_t kind) except -1:
        end = ENDS[kind]
        if rc == VMAP_CLOSED:
            raise ValueError("this machine is closed")
        if rc == VMAP_UNALIGNED:
            raise AllocatorError(f"{end} of a bad address: {at:#x} is not page-aligned")
        if rc == VMAP_FREED:
            raise AllocatorError(f"double free: {end} of {at:#x}, which is freed already")
        if rc == VMAP_INTERIOR:
            raise AllocatorError(
                f"{end} of {at:#x}: the area there begins elsewhere, or has another length")
        if rc == VMAP_OTHER_KIND:
            raise AllocatorError(f"{end} of {at:#x}, which {KINDS[kind]} did not give")
        raise AllocatorError(f"{end} of a nonexistent area: {at:#x}")


# The Python code that calls, and where in it: built-in methods have no frame of their own.
cdef tuple who_calls():
    try:
        frame = sys._getframe()
    except ValueError:
        return None
    # With the option `debug` the machine's own wrapper stands in between.
    if frame.f_back is not None and frame.f_globals.get("__name__") == "realmem.machine":
        frame = frame.f_back
    return frame.f_code, frame.f_lasti
