# cython: language_level=3
"""
Stacks of Python code by number, each kept once.

Compare lib/stackdepot.c: the track behind an object has room for a number only.
"""
import sys

from libc.stdint cimport uint32_t

cdef enum:
    MAX_DEPTH = 16                  # frames, as TRACK_ADDRS_COUNT
    MAX_STACKS = 1 << 20


cdef class StackDepot:
    """The stacks of one machine's callers; their memory is never given back."""

    def __cinit__(self):
        self.handles = {}
        self.stacks = []

    cdef uint32_t save(self) except? 0xFFFFFFFF:
        cdef list frames = []
        cdef uint32_t handle
        try:
            frame = sys._getframe()
        except ValueError:              # called by no Python code
            return 0
        # With the option `debug` the machine's own wrapper stands in between.
        while frame is not None and frame.f_globals.get("__name__") == "realmem.machine":
            frame = frame.f_back
        while frame is not None and len(frames) < MAX_DEPTH:
            code = frame.f_code
            frames.append((code.co_filename, frame.f_lineno, code.co_name))
            frame = frame.f_back
        stack = tuple(frames)
        handle = self.handles.get(stack, 0)
        if handle == 0 and len(self.stacks) < MAX_STACKS:
            self.stacks.append(stack)
            handle = <uint32_t>len(self.stacks)
            self.handles[stack] = handle
        return handle

    def fetch(self, uint32_t handle):
        """Give the frames of a stack, (file, line, function) each, the innermost first."""
        if 0 < handle <= len(self.stacks):
            return self.stacks[handle - 1]
        return ()
