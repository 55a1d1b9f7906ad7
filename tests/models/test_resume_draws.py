"""A resumed run draws the numbers that the run would have drawn, whichever generator a method uses."""

import pytest

from palimpsest.utils.check import case_runs, cases


@pytest.mark.parametrize("method", ["icarl", "vcl"])
def test_a_resumed_run_draws_what_the_whole_one_drew(method):
    case = cases.Case(method, "class-il")
    whole = case_runs.run(case)
    resumed = case_runs.resumed_run(case, whole.run.history[-1].step // 2)
    assert not case_runs.differing_entries(case_runs.state_of(whole), case_runs.state_of(resumed))
    assert whole.run.history == resumed.run.history
