"""Compiled, GIL-side faces of the kernel side."""
