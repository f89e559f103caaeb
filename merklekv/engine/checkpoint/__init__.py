"""Checkpoints: sealed log segments become part of the base."""
