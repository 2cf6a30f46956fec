"""The simulation finds what it is there to find: defects that are planted, each in a process of its own."""

import pytest
from sim.hunting import Catch, hunt
from sim.mutations import MUTATIONS, Mutation

# The hunt is one fixture, and so counts as one test's time; a machine that others use may need many times the usual.
pytestmark = pytest.mark.timeout(900)
QUICK = [mutation for mutation in MUTATIONS if mutation.is_quick]
TIMEOUT_S = 600.0


@pytest.fixture(scope="session")
def catches() -> dict[str, Catch]:
    """Of the quick ones, hunted side by side, each from the seed on that it is known by."""
    return {catch.name: catch for catch in hunt(QUICK, None, TIMEOUT_S)}


def test_there_are_ten_or_more() -> None:
    assert len({mutation.name for mutation in MUTATIONS}) == len(MUTATIONS)
    assert len(QUICK) >= 10


@pytest.mark.parametrize("mutation", QUICK, ids=lambda mutation: mutation.name)
def test_a_planted_bug_is_found(mutation: Mutation, catches: dict[str, Catch]) -> None:
    catch = catches[mutation.name]
    assert catch.seed is not None, f"{catch.seeds} seeds of profile {mutation.profile} have not found it"
