# What recounts of address spaces and of the vmalloc area can find.
from libc.stdint cimport int64_t, uint64_t

# What is wrong; _core/check_mm.pyx has the words.
cdef enum:
    MM_VALID = 0
    MM_OUTSIDE_VMA = 1          # an entry in no VMA
    MM_ABOVE_VMA = 2            # an entry allows more than its VMA
    MM_ABOVE_ENTRY = 3          # a host mapping allows more than its entry
    MM_NOT_ANON = 4             # an entry's frame is no anonymous page
    MM_SHARED_WRITABLE = 5      # a writable entry to a frame that is mapped elsewhere too
    MM_RSS = 6
    MM_TABLE_USE = 7            # a table's count of used entries
    MM_NR_PTES = 8
    MM_HOST_EDGES = 9
    MM_MAPCOUNT = 10
    MM_REFCOUNT = 11
    MM_LOST_TABLE = 12          # page-table frames in no address space
    MM_VMA_ORDER = 13
    MM_VMAP_RANGES = 14         # vmalloc: ranges overlap, or are not all
    MM_VMAP_PAGES = 15          # vmalloc: an area's count of pages, or the sum
    MM_VMAP_FRAME = 16          # vmalloc: an entry to a frame that is free, or not the area's
    MM_VMAP_STRAY = 17          # vmalloc: entries in no area
    MM_LOST_FRAME = 18          # frames that say they are vmalloc's, and are in no area
    MM_OBJECTS = 19             # objects of a slab cache (`where`) in use, and in use by nobody
    MM_VMA_OBJECT = 20          # a VMA and the slot that publishes it differ
    MM_COUNTERS = 21            # total_vm and its kin
    MM_RMAP = 22                # a frame's owner or page is not that of the VMA that maps it
    MM_HUGE = 23                # a huge entry and the table that it keeps differ
    MM_HUGE_COUNT = 24          # frames that say how many huge entries map them
    MM_MLOCK = 25               # frames that count the locked VMAs that map them; nr_mlock
    MM_RUNS = 26                # tables that have a run, or runs without a table
    MM_SWAP = 27                # entries of swapped pages, and what counts them

cdef struct mm_finding:
    int what
    int pid
    uint64_t where              # address or pfn
    int64_t expected
    int64_t found
