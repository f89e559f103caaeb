"""Hostile input for everything that a node reads, see tests/README.md."""
