"""The fixtures of the benchmarks are in `data_sets`, where mypy checks them."""

pytest_plugins = ["data_sets"]
