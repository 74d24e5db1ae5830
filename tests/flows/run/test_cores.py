"""Cores: stages side by side never hold more than there are, and none waits for ever."""

import threading
import time

import pytest

from flows.dag.graph import Stage
from flows.run.cores import Cores, wanted


@pytest.mark.parametrize(("threads", "at_once"), [(1, 4), (2, 2), (3, 1), (9, 1)])
def test_no_more_threads_than_cores_and_all_get_through(threads, at_once):
    cores, lock = Cores(4), threading.Lock()
    running, most, done = 0, 0, 0

    def work():
        nonlocal running, most, done
        with cores.take(threads):
            with lock:
                running += 1
                most = max(most, running)
            time.sleep(0.05)
            with lock:
                running -= 1
                done += 1

    workers = [threading.Thread(target=work) for _ in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(10)
    assert (most, done, cores.free) == (at_once, 8, 4)


def fails(cores):
    with cores.take(2):
        raise RuntimeError("stage failed")


def test_a_failing_stage_gives_its_cores_back():
    cores = Cores(2)
    with pytest.raises(RuntimeError):
        fails(cores)
    assert cores.free == 2


def test_a_stage_wants_the_threads_it_depends_on():
    def stage(params):
        return Stage("s", "cmd", {}, (), (), {"params.yaml": params}, ())

    assert wanted(stage({"compute": {"threads": 3}})) == 3
    assert wanted(stage({"seed": 0})) == 1
