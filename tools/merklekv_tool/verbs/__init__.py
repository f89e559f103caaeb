"""The verbs of `merklekv`, one module each: its options, what it prints, its exit status."""
