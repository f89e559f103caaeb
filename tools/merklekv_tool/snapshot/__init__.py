"""Copies of data as it is at one moment, made while a node goes on writing: what a backup is made of."""
