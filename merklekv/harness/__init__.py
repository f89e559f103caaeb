"""Nodes and brokers as child processes: for `merklekv demo`, the tests, the benchmarks and the scripts."""
