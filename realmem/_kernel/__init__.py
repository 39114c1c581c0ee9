"""Compiled kernel side: what may run inside a page fault; nothing here is for Python."""
