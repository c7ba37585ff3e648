"""How many channels are kept where something binds them."""

import numpy as np

from prunella.coupling.counting import Atom, Cluster, nearest_counts


def test_a_problem_that_the_solver_fails_to_presolve_is_solved():
    # 16 embedding channels, 4 heads of 4, one number for both: HiGHS's presolve gives up on it.
    cluster = Cluster(
        groups=("embed", "heads"),
        atoms=(
            Atom("embed", ((0, 0, 1),), np.arange(16)),
            Atom("heads", ((0, 1, 4),), np.arange(16, 20)),
        ),
        moved=False,
        equal=np.array([[-1, 4]]),
        offset=np.array([0]),
        axes=np.eye(2, dtype=int),
    )
    counts = nearest_counts(cluster, {"embed": 3 / 16, "heads": 3 / 16})
    assert counts.tolist() == [12, 3]
