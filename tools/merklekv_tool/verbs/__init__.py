"""The verbs of `merklekv-tool`, one module each: its options, what it prints, its exit status."""
