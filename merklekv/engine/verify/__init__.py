"""Verification: what must hold of a data directory, checked, scrubbed and repaired."""
