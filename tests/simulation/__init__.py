"""Whole clusters in one process, from one seed: see README.md."""
