"""The code broken on purpose: the simulator has to notice.  Collected with `--simulation-mutations` alone."""

from __future__ import annotations

import pytest

from .clauses import CLAUSES, Clause, without
from .mutations import MUTATIONS, Mutation, applied, seeds_of
from .run import run_seed


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name.replace(" ", "-"))
def test_the_mistake_is_found(mutation: Mutation) -> None:
    with applied(mutation):
        assert any(run_seed(seed).problems for seed in seeds_of(mutation))


@pytest.mark.parametrize("clause", CLAUSES, ids=lambda clause: clause.name.replace(" ", "-"))
def test_every_clause_is_needed(clause: Clause) -> None:
    for seed in clause.seeds:
        assert not run_seed(seed).problems
        with without(clause):
            assert run_seed(seed).problems
