"""Histories from seeds, and the simulator itself: a seed means one history in every process, and a history that fails
shrinks to what matters.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .clauses import CLAUSES, without
from .history import history
from .mutations import MUTATIONS, Mutation, applied
from .run import run, run_seed, shrink

ROOT = Path(__file__).parent.parent.parent
STEPS_THAT_MATTER = 12  # at most, in the history below
SEEDS_TO_FAIL = 30


def test_what_the_cluster_owes_it_gives(seeds: list[str]) -> None:
    for seed in seeds:
        verdict = run_seed(seed)
        if verdict.problems:
            pytest.fail(f"{shrink(verdict)}\nto see it again: --simulation-seed {seed}", pytrace=False)


@pytest.mark.parametrize("seed", ["1", "2", "3"])
def test_a_seed_is_one_history_in_every_process(seed: str) -> None:
    verdict = run_seed(seed)
    assert run_seed(seed).trace == verdict.trace
    command = [sys.executable, "-m", "tests.simulation", "--seed", seed, "--trace"]
    environment = os.environ | {"PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=250, check=True)
    assert done.stdout.split() == [verdict.trace]


def test_any_part_of_a_history_is_a_history() -> None:
    story = history("4")
    for number in range(1, len(story.steps), 7):
        story.steps = story.steps[number:]
        assert run(story).problems == []


def test_every_mistake_can_still_be_made() -> None:
    """Whether each is found takes long, see test_mutations.py; that the code has not moved away from one does not."""
    for mutation in MUTATIONS:
        with applied(mutation):
            pass


@pytest.mark.parametrize("mutation", [one for one in MUTATIONS if one.rare], ids=lambda one: one.name.replace(" ", "-"))
def test_a_seed_kept_for_a_rare_mistake_still_shows_it(mutation: Mutation) -> None:
    for seed in mutation.rare:
        assert not run_seed(seed).problems
        with applied(mutation):
            assert run_seed(seed).problems


def test_every_clause_of_the_rule_has_a_name_and_a_seed() -> None:
    """Whether each history fails without its clause: `python -m tests.simulation --clauses`."""
    assert len({clause.name for clause in CLAUSES}) == len(CLAUSES)
    for clause in CLAUSES:
        assert clause.seeds, f"no history needs '{clause.name}'"
        with without(clause):
            pass


@pytest.mark.parametrize("name", [clause.name for clause in CLAUSES if clause.name.startswith("row ")])
def test_every_row_of_the_deletion_rule_is_needed(name: str) -> None:
    clause = next(clause for clause in CLAUSES if clause.name == name)
    assert not run_seed(clause.seeds[0]).problems
    with without(clause):
        assert run_seed(clause.seeds[0]).problems


def test_a_history_that_fails_shrinks_to_what_matters() -> None:
    late = next(mutation for mutation in MUTATIONS if mutation.name == "what is late overwrites what is newer")
    with applied(late):
        verdict = next(verdict for seed in range(SEEDS_TO_FAIL) if (verdict := run_seed(str(seed))).problems)
        shortest = shrink(verdict)
        assert 0 < len(shortest.history.steps) <= min(STEPS_THAT_MATTER, len(verdict.history.steps))
        assert run(shortest.history).problems == shortest.problems
    assert run(shortest.history).problems == []
