"""A short campaign over every path of the network, from a new seed; a failure prints how to see it again."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from .campaign import Campaign
from .input_path import find_paths

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
    seed = random.SystemRandom().randrange(1, 1 << 32)
    with Campaign([paths[name] for name in GROUPS[group]], seed, tmp_path, measures=False) as campaign:
        campaign.run(INPUTS)
    assert not campaign.findings, campaign.report()
