"""The fixtures that all tests share, by concern: README.md lists them. Nothing else is here, because mypy knows one
module `conftest` only, and that is the integration suite's.
"""

pytest_plugins = [
    "fixtures.gate",
    "fixtures.signals",
    "fixtures.node",
    "fixtures.broker",
    "fixtures.cluster",
    "fixtures.crash",
    "fixtures.differential",
    "fixtures.small_disk",
    "fixtures.box",
    "fixtures.proxy",
    "fixtures.browser",
    "fixtures.demo",
    "fixtures.simulation_runs",
    "fixtures.packages",
]
