# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
# cython: initializedcheck=False, nonecheck=False, profile=False, linetrace=False
# A frame is dirty from the first store of a shared mapping, which faults, until it was written
# back: the flag goes first, then every mapping loses its right to write, then the bytes go.  A
# store in between faults and sets the flag again, so that none is lost.
from libc.errno cimport (
    EDQUOT, EFBIG, EINTR, EIO, ENOSPC, EROFS,
)
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcpy, memset

from realmem._kernel.address_space cimport (
    TAKE_ALL, TAKE_CLEAN, TAKE_OBJECT, mapping_add_locked, mapping_drop, mapping_walk,
)
from realmem._kernel.folio cimport FOLIO_GFP
from realmem._kernel.host_calls cimport mutex_lock, mutex_unlock
from realmem._kernel.mm_types cimport (
    FAULT_OK, FAULT_OOM, FAULT_SIGBUS, HOST_READ, PTE_DIRTY, PTE_RW, PTE_SPECIAL,
    VM_SHARED, address_space, mm_struct, mmu, pinned_page, pte_pfn, pte_present, vma_cursor,
    vma_slot,
)
from realmem._kernel.page_alloc cimport alloc_pages_node
from realmem._kernel.page_free cimport get_page, put_page
from realmem._kernel.pgtable cimport PTES_READ, pte_cursor, pte_first, pte_next
from realmem._kernel.radix_tree cimport radix_load, radix_next
from realmem._kernel.tlb cimport tlb_protect_locked
from realmem._kernel.vmaindex cimport vma_first, vma_next
from realmem._kernel.zap cimport set_page_dirty_locked
from realmem.compiler cimport (
    SEQ_CST, atomic64_add_return, atomic64_fetch_and,
)
from realmem.types cimport (
    GFP_FAULT, PAGE_SHIFT, PAGE_SIZE, PG_dirty, PG_file, PG_uptodate, page,
    page_address, pfn_to_page,
)

cdef extern from *:
    """
    #include <fcntl.h>
    #include <linux/falloc.h>
    #include <string.h>
    #include <sys/stat.h>
    #include <sys/uio.h>

    /* i_size, and what changes when somebody writes. */
    static int rm_file_look(int fd, int64_t *stamp)
    {
        struct stat st;
        long rc = rm_hostcall(SYS_fstat, fd, (long)&st, 0, 0, 0, 0);
        if (rc < 0)
            return (int)rc;
        stamp[0] = st.st_size;
        stamp[1] = st.st_mtim.tv_sec * 1000000000LL + st.st_mtim.tv_nsec;
        stamp[2] = st.st_ctim.tv_sec * 1000000000LL + st.st_ctim.tv_nsec;
        return 0;
    }
    static int64_t rm_file_read(int fd, struct iovec *iov, int n, uint64_t at)
    {
        return rm_hostcall(SYS_preadv, fd, (long)iov, n, (long)at, (long)(at >> 32), 0);
    }
    static int64_t rm_file_write(int fd, struct iovec *iov, int n, uint64_t at)
    {
        return rm_hostcall(SYS_pwritev, fd, (long)iov, n, (long)at, (long)(at >> 32), 0);
    }
    static int rm_file_punch(int fd, uint64_t at, uint64_t length)
    {
        return (int)rm_hostcall(SYS_fallocate, fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                                (long)at, (long)length, 0, 0);
    }
    static int rm_file_reserve(int fd, uint64_t at, uint64_t length)
    {
        return (int)rm_hostcall(SYS_fallocate, fd, FALLOC_FL_KEEP_SIZE, (long)at, (long)length,
                                0, 0);
    }
    """
    ctypedef struct iovec "struct iovec":
        void* iov_base
        uint64_t iov_len
    int file_look "rm_file_look"(int fd, int64_t* stamp) noexcept nogil
    int64_t file_read "rm_file_read"(int fd, iovec* iov, int n, uint64_t at) noexcept nogil
    int64_t file_write "rm_file_write"(int fd, iovec* iov, int n, uint64_t at) noexcept nogil
    int file_punch "rm_file_punch"(int fd, uint64_t at, uint64_t length) noexcept nogil
    int file_reserve "rm_file_reserve"(int fd, uint64_t at, uint64_t length) noexcept nogil

cdef enum:
    WINDOW = 16                 # pages that are read and written together
    TRIES = 8
    FILE_FLAGS = 1 << PG_file | 1 << PG_uptodate


# ---- looking at the file ----------------------------------------------------

cdef inline uint64_t pages_of(uint64_t size) noexcept nogil:
    return (size + PAGE_SIZE - 1) >> PAGE_SHIFT


cdef inline bint is_stamp(const int64_t* one, const int64_t* other) noexcept nogil:
    return one[0] == other[0] and one[1] == other[1] and one[2] == other[2]


# Before a change of our own to the file: whether nobody else changed it unnoticed.
cdef bint unchanged_locked(address_space* object) noexcept nogil:
    cdef int64_t now[3]
    return file_look(object.fd, now) == 0 and is_stamp(now, object.stamp)


# After it: what fstat() says now is what the frames are like; unless somebody else's change is
# to be noticed yet.
cdef void note_locked(address_space* object, bint unchanged) noexcept nogil:
    cdef int64_t now[3]
    if unchanged and file_look(object.fd, now) == 0 and now[0] == object.stamp[0]:
        memcpy(object.stamp, now, sizeof(now))


# A fault past the end that was known: the file may have grown.  (Bytes behind the old end are
# in no frame but the last one, whose rest is read.)
cdef void grown_locked(address_space* object) noexcept nogil:
    cdef int64_t now[3]
    if file_look(object.fd, now) == 0 and <uint64_t>now[0] > object.i_size:
        resize_locked(object, <uint64_t>now[0])


# The last page of the old size: what follows was not the file's.
cdef void resize_locked(address_space* object, uint64_t size) noexcept nogil:
    cdef uint64_t old = object.i_size
    cdef uint64_t edge = min(old, size)
    cdef uint64_t rest = edge & (PAGE_SIZE - 1)
    cdef page* p = <page*>radix_load(object.root, edge >> PAGE_SHIFT) if rest else NULL
    cdef char* at
    cdef iovec iov
    if p != NULL:
        at = <char*>page_address(object.mmu.m, p)
        memset(at + rest, 0, PAGE_SIZE - rest)
        if size > old:
            iov.iov_base = at + rest
            iov.iov_len = min(size - old, PAGE_SIZE - rest)
            file_read(object.fd, &iov, 1, old)
    object.i_size = size
    object.size = pages_of(size)


cdef int filemap_look(address_space* object) noexcept nogil:
    cdef int64_t now[3]
    cdef int64_t change = 0
    cdef uint64_t size = 0
    cdef bint shrunk = False
    cdef int rc
    mutex_lock(&object.lock)
    rc = file_look(object.fd, now)
    if rc == 0:
        if not is_stamp(now, object.stamp):
            memcpy(object.stamp, now, sizeof(now))
            object.shrunk |= <uint64_t>now[0] < object.i_size
            resize_locked(object, <uint64_t>now[0])
            object.changes += 1
            object.stale = object.changes
        change = object.stale
        shrunk = object.shrunk
        size = object.size
    mutex_unlock(&object.lock)
    # Who comes meanwhile finds it stale, and helps.
    if change != 0:
        if shrunk:
            mapping_drop(object, size, <uint64_t>-1, TAKE_ALL)
        if mapping_drop(object, 0, <uint64_t>-1, TAKE_CLEAN):
            mutex_lock(&object.lock)
            if object.stale == change:
                object.stale = 0
                object.shrunk = 0
            mutex_unlock(&object.lock)
    return rc


# ---- reading ----------------------------------------------------------------

cdef page* filemap_get_page(address_space* object, uint64_t index, int nid, bint make,
                            int* rc_ret, bint* read_ret) noexcept nogil:
    cdef page* p = NULL
    mutex_lock(&object.lock)
    rc_ret[0] = FAULT_OK
    if index >= object.size and make:
        grown_locked(object)
    if index >= object.size:
        rc_ret[0] = FAULT_SIGBUS
    else:
        p = <page*>radix_load(object.root, index)
        if p == NULL and make:
            rc_ret[0] = read_around(object, index, nid)
            read_ret[0] = True
            p = <page*>radix_load(object.root, index)
        if p != NULL:
            get_page(p)
    mutex_unlock(&object.lock)
    return p


# Read what is missing around a page: a run of it that has the page, within its WINDOW.
# Returns: FAULT_OK, and the page is there; FAULT_OOM, FAULT_SIGBUS.
cdef int read_around(address_space* object, uint64_t index, int nid) noexcept nogil:
    cdef uint64_t low = index & ~<uint64_t>(WINDOW - 1)
    cdef uint64_t high = min(low + WINDOW, object.size)
    cdef uint64_t first = index, end = index + 1
    cdef int rc
    while first > low and radix_load(object.root, first - 1) == NULL:
        first -= 1
    while end < high and radix_load(object.root, end) == NULL:
        end += 1
    rc = read_run(object, first, end, index, nid)
    if rc == FAULT_SIGBUS and end - first > 1:
        rc = read_run(object, index, index + 1, index, nid)     # the others need not be readable
    return rc


cdef int read_run(address_space* object, uint64_t first, uint64_t end, uint64_t index,
                  int nid) noexcept nogil:
    cdef mmu* u = object.mmu
    cdef page* pages[WINDOW]
    cdef iovec iov[WINDOW]
    cdef uint64_t i
    cdef int n = 0
    cdef int64_t got
    cdef bint end_of_file
    cdef int rc
    # The page itself first: the others are had where that costs nobody anything.
    cdef page* wanted = alloc_pages_node(u.m, nid, GFP_FAULT, 0)
    cdef page* p
    if wanted == NULL:
        return FAULT_OOM
    for i in range(first, end):
        p = wanted if i == index else alloc_pages_node(u.m, nid, FOLIO_GFP, 0)
        if p == NULL and i > index:
            break
        if p == NULL:               # what came before it is no run with the page any more
            while n > 0:
                n -= 1
                put_page(u.m, pages[n])
            first = i + 1
            continue
        pages[n] = p
        iov[n].iov_base = <void*>page_address(u.m, p)
        iov[n].iov_len = PAGE_SIZE
        n += 1
    got = read_all(object, iov, n, first << PAGE_SHIFT, &end_of_file)
    rc = FAULT_SIGBUS
    atomic64_add_return(&u.pgpgin, (got + 1023) >> 10, SEQ_CST)
    for i in range(n):
        if 0 < got < PAGE_SIZE and end_of_file:
            memset(<char*>page_address(u.m, pages[i]) + got, 0, PAGE_SIZE - got)
            got = PAGE_SIZE
        # What could be read of a page in part, and is not the file's end, is no page.
        if got < PAGE_SIZE:
            put_page(u.m, pages[i])
        elif mapping_add_locked(object, first + i, pages[i], FILE_FLAGS) != 0:
            rc = FAULT_OOM if first + i == index else rc
            put_page(u.m, pages[i])
        elif first + i == index:
            rc = FAULT_OK
        got -= PAGE_SIZE
    return rc


# Read until all is there, or the file's end, or an error; the pages' lengths are used up.
# Returns: bytes.
cdef int64_t read_all(address_space* object, iovec* iov, int n, uint64_t at,
                      bint* end_ret) noexcept nogil:
    cdef int64_t done = 0
    cdef int64_t got, part
    cdef int i = 0
    end_ret[0] = False
    while i < n:
        got = file_read(object.fd, iov + i, n - i, at + done)
        if got == -EINTR:
            continue
        if got <= 0:
            end_ret[0] = got == 0
            break
        done += got
        while i < n and got > 0:
            part = min(got, <int64_t>iov[i].iov_len)
            iov[i].iov_base = <char*>iov[i].iov_base + part
            iov[i].iov_len -= part
            got -= part
            i += iov[i].iov_len == 0
    return done


cdef void filemap_read_ahead(address_space* object, uint64_t first, uint64_t last,
                             int nid) noexcept nogil:
    cdef uint64_t index = first
    cdef page* p
    cdef bint read = False
    cdef int rc = FAULT_OK
    while index <= last and rc == FAULT_OK:
        p = filemap_get_page(object, index, nid, True, &rc, &read)
        if p != NULL:
            put_page(object.mmu.m, p)
        index += 1


cdef int filemap_punch(address_space* object, uint64_t first, uint64_t last) noexcept nogil:
    cdef bint unchanged
    cdef int rc
    mutex_lock(&object.write_lock)
    mutex_lock(&object.lock)
    unchanged = unchanged_locked(object)
    rc = file_punch(object.write_fd, first << PAGE_SHIFT, (last - first + 1) << PAGE_SHIFT)
    if rc == 0:
        note_locked(object, unchanged)
    mutex_unlock(&object.lock)
    if rc == 0:
        mapping_drop(object, first, last, TAKE_OBJECT)
    mutex_unlock(&object.write_lock)
    return rc


# ---- changing ---------------------------------------------------------------

cdef int filemap_mkwrite(address_space* object, page* p) noexcept nogil:
    cdef bint unchanged
    cdef int rc = -EINTR
    mutex_lock(&object.lock)
    if p.index >= object.size or object.write_fd < 0:
        mutex_unlock(&object.lock)
        return FAULT_SIGBUS
    if not p.flags & (1 << PG_dirty):
        unchanged = unchanged_locked(object)
        while rc == -EINTR:
            rc = file_reserve(object.write_fd, p.index << PAGE_SHIFT, PAGE_SIZE)
        if rc == -ENOSPC or rc == -EDQUOT or rc == -EIO or rc == -EROFS or rc == -EFBIG:
            mutex_unlock(&object.lock)
            return FAULT_SIGBUS
        if rc == 0:
            note_locked(object, unchanged)      # a place is no change of what it holds
        set_page_dirty_locked(object, p)
    mutex_unlock(&object.lock)
    return FAULT_OK


cdef inline void clean_locked(address_space* object, page* p) noexcept nogil:
    atomic64_fetch_and(&p.flags, ~(<uint64_t>1 << PG_dirty), SEQ_CST)
    object.nr_dirty -= 1
    atomic64_add_return(&object.mmu.nr_dirty, -1, SEQ_CST)


cdef int64_t filemap_dirty(address_space* object, uint64_t first, uint64_t last) noexcept nogil:
    cdef uint64_t index = first
    cdef int64_t n = 0
    cdef page* p
    mutex_lock(&object.lock)
    if object.nr_dirty > 0:
        while True:
            p = <page*>radix_next(object.root, &index)
            if p == NULL or index > last:
                break
            n += p.flags >> PG_dirty & 1
            index += 1
    mutex_unlock(&object.lock)
    return n


# ---- writing back -----------------------------------------------------------

cdef int filemap_write_back(address_space* object, uint64_t first, uint64_t last) noexcept nogil:
    cdef page* pages[WINDOW]
    cdef uint64_t index = first
    cdef int rc = 0, failed
    cdef int n
    mutex_lock(&object.write_lock)
    while index <= last:
        n = gather_dirty(object, &index, last, pages)
        if n == 0:
            break
        failed = write_pages(object, index, pages, n)
        rc = failed if failed != 0 else rc
        index += <uint64_t>n
    mutex_unlock(&object.write_lock)
    return rc


# The next changed frames that follow each other, each with a reference, and no longer dirty.
cdef int gather_dirty(address_space* object, uint64_t* index_ref, uint64_t last,
                      page** pages_ret) noexcept nogil:
    cdef page* p
    cdef int n = 0
    cdef uint64_t index = index_ref[0]
    mutex_lock(&object.lock)
    while n < WINDOW:
        p = <page*>radix_next(object.root, &index)
        if p == NULL or index > last:
            break
        if not p.flags & (1 << PG_dirty):
            if n > 0:
                break
        elif n > 0 and index != index_ref[0] + <uint64_t>n:
            break
        else:
            if n == 0:
                index_ref[0] = index
            clean_locked(object, p)
            get_page(p)
            pages_ret[n] = p
            n += 1
        index += 1
        if index == 0:
            break
    mutex_unlock(&object.lock)
    return n


cdef int write_pages(address_space* object, uint64_t index, page** pages, int n) noexcept nogil:
    cdef mmu* u = object.mmu
    cdef uint64_t start = index << PAGE_SHIFT
    cdef int64_t length, done = 0
    cdef int64_t rc = 0
    cdef int64_t now[3]
    cdef bint writable = write_protect(object, index, index + n - 1)
    cdef bint unchanged
    cdef int i
    mutex_lock(&object.lock)
    unchanged = unchanged_locked(object)
    length = min(<int64_t>object.i_size - <int64_t>start, <int64_t>n << PAGE_SHIFT)
    # What somebody else cut off does not grow again.
    if not unchanged and file_look(object.fd, now) == 0:
        length = min(length, now[0] - <int64_t>start)
    while done < length and rc == 0:
        rc = write_from(object, pages, start, done, length)
        if rc > 0:
            done += rc
            rc = 0
        elif rc == 0:
            rc = -EIO
        elif rc == -EINTR:
            rc = 0
    atomic64_add_return(&u.pgpgout, (done + 1023) >> 10, SEQ_CST)
    if done > 0:
        note_locked(object, unchanged)
    for i in range(n):
        if pages[i].mapping == object and (writable or (rc != 0 and done < <int64_t>(i + 1)
                                                        << PAGE_SHIFT)):
            set_page_dirty_locked(object, pages[i])
        put_page(u.m, pages[i])
    mutex_unlock(&object.lock)
    return <int>rc


cdef int64_t write_from(address_space* object, page** pages, uint64_t start, int64_t done,
                        int64_t length) noexcept nogil:
    cdef iovec iov[WINDOW]
    cdef int n = 0
    cdef int64_t at = done, part
    while at < length:
        part = min(PAGE_SIZE - (at & (PAGE_SIZE - 1)), length - at)
        iov[n].iov_base = <void*>(page_address(object.mmu.m, pages[at >> PAGE_SHIFT])
                                  + <uint64_t>(at & (PAGE_SIZE - 1)))
        iov[n].iov_len = part
        n += 1
        at += part
    return file_write(object.write_fd, iov, n, start + done)


# Take the right to write from every mapping of pages [first, last].
# Mirrors: folio_mkclean() => page_vma_mkclean_one().
# Returns: whether one may stay writable: pinned for a host call, or on its way to another VMA.
cdef bint write_protect(address_space* object, uint64_t first, uint64_t last) noexcept nogil:
    cdef bint pinned = False
    cdef int _turn
    for _turn in range(TRIES):
        pinned = False
        if mapping_walk(object, first, last, protect_in, &pinned):
            return pinned
    return True


cdef void protect_in(mm_struct* mm, address_space* object, uint64_t start, uint64_t end,
                     void* pinned_ret) noexcept nogil:
    cdef vma_cursor cursor
    cdef vma_slot* slot = vma_first(&mm.vmas, start, &cursor)
    cdef pte_cursor c
    cdef uint64_t* pte
    while slot != NULL and slot.start < end:
        if slot.vma.vm_object == object and slot.vma.vm_flags & VM_SHARED:
            tlb_protect_locked(mm, max(start, slot.start), min(end, slot.end), HOST_READ, True)
            pte = pte_first(&c, mm, max(start, slot.start), min(end, slot.end), PTES_READ)
            while pte != NULL:
                if pte_present(pte[0]) and not pte[0] & PTE_SPECIAL:
                    if pinned_page(mm, pte[0]):
                        (<bint*>pinned_ret)[0] = True
                    elif pfn_to_page(mm.mmu.m, pte_pfn(pte[0])).mapping == object:
                        pte[0] &= ~<uint64_t>(PTE_RW | PTE_DIRTY)
                pte = pte_next(&c)
        slot = vma_next(&cursor)
