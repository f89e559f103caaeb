"""The code broken on purpose: the simulator has to notice.  Collected with `--simulation-mutations` alone."""

from __future__ import annotations

import pytest

from .mutations import MUTATIONS, Mutation, applied, seeds_of
from .run import run_seed


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name.replace(" ", "-"))
def test_the_mistake_is_found(mutation: Mutation) -> None:
    with applied(mutation):
        assert any(run_seed(seed).problems for seed in seeds_of(mutation))
