"""Changed parameter files: each is refused in lines or can be built; none ends in a traceback."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.flows.params.fuzz import changed, outcome

SLOW = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]


def check(draw, tmp_path):
    assert outcome(changed(draw), tmp_path / "params.yaml") in ("accepted", "refused")


@given(st.randoms(use_true_random=False, note_method_calls=False))
@settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=SLOW)
def test_a_changed_file_is_refused_in_lines_or_can_be_built(tmp_path, draw):
    check(draw, tmp_path)


@pytest.mark.long
@given(st.randoms(use_true_random=False, note_method_calls=False))
@settings(max_examples=3000, deadline=None, derandomize=True, suppress_health_check=SLOW)
def test_thousands_of_changed_files(tmp_path, draw):
    check(draw, tmp_path)
