"""A short campaign over files, settings and verbs; the same inputs each time. A failure prints how to see it again.

`python -m tests.hostile` draws new ones.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from .campaign import Campaign
from .input_path import find_paths

SEED = 20
INPUTS = {"directory": 30, "dump": 25, "backup": 8, "settings": 50, "verbs": 25}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", INPUTS)
def test_a_hostile_file_is_refused_with_a_line_or_harms_nothing(name: str, tmp_path: Path) -> None:
    with Campaign([find_paths()[name]], SEED, tmp_path, measures=False) as campaign:
        campaign.run(INPUTS[name])
    assert not campaign.findings, campaign.report()
