"""Verification: the checker, its reference, and the scrub of a running node."""
