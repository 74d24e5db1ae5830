"""`make test` shares files of tests between processes; a chain that many files need runs once."""

import os

import pytest


@pytest.mark.skipif("PYTEST_XDIST_WORKER" not in os.environ, reason="one process runs all tests")
def test_the_tests_of_a_file_stay_with_one_process(request):
    assert request.node.nodeid.endswith(f"@{request.path}"), "xdist does not see xdist_group"
