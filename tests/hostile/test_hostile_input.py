"""A short campaign over every path of the network; the same inputs each time. A failure prints how to see it again.

`python -m tests.hostile` draws new ones.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from .campaign import Campaign
from .input_path import find_paths

SEED = 20
INPUTS = 2000
GROUPS = {
    "clients": ("resp", "lines", "dialogue", "scripts", "foreign", "http"),
    "nodes": ("exchange", "server"),
    "broker": ("messages", "broker"),
}


@pytest.mark.replication
@pytest.mark.timeout(900)
@pytest.mark.parametrize("group", GROUPS)
def test_no_input_harms_more_than_its_sender(group: str, tmp_path: Path) -> None:
    paths = find_paths()
    with Campaign([paths[name] for name in GROUPS[group]], SEED, tmp_path, measures=False) as campaign:
        campaign.run(INPUTS)
    assert not campaign.findings, campaign.report()
