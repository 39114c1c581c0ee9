"""Compiled measuring loops."""
