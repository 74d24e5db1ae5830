"""The same bytes from any executor, and a lost worker costs its item only."""

import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import torch

from fmcore.couple import couple
from fmcore.coupling.noise import gaussian_noise
from fmcore.coupling.verify import verify
from fmcore.network.store import load, save
from fmcore.sampling.flow import Flow, mean_nfe
from fmcore.sampling.pairs import Couple
from fmcore.sampling.samples import SampleJob, sampled
from fmcore.settings import ReflowError
from fmcore.solve.adaptive import Adaptive
from fmcore.solve.solver import Solver
from fmcore.work.executor import IN_PROCESS, Executor
from fmcore.work.work import Work
from fmcore.work.worker import Payload, work
from fmcore.work.workers import start_workers
from tests.chains import CPU, gaussian_data, scratch_model, silent
from tests.conftest import SOURCE

SETTINGS = Couple(pairs=1200, shard=100, solver=Solver(name="heun", steps=2), audit_every=10)
ELSEWHERE = ["processes:2", pytest.param("ray:2", marks=pytest.mark.long), "dask:2"]


@pytest.fixture(autouse=True)
def _two_threads():
    """Not the default of a worker, so that a worker that ignores them is found out."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    folder = tmp_path_factory.mktemp("executors")
    gaussian_data(folder / "data", mu=[0.0, 0.0, 1.0], s=[1.0, 1.0, 2.0], pairs=50)
    model = load(scratch_model(folder / "model", dim=3)).network
    generator = torch.Generator().manual_seed(3)
    for p in model.parameters():
        p += 0.2 * torch.randn(p.shape, generator=generator)
    save(folder / "model", model, about={"round": "rf1"})
    return folder


def run(start, name, executor, log=silent):
    out = start / name / "coupling"
    couple(
        start / "model",
        start / "data",
        out,
        start / name / "metrics.json",
        SETTINGS,
        Work(scratch=start / name / "scratch", seed=11, log=log, executor=executor),
    )
    return {p.name: p.read_bytes() for p in out.iterdir()}


@pytest.fixture(scope="module")
def whole(start):
    torch.set_num_threads(2)
    return run(start, "in-process", IN_PROCESS)


def workers(kind):
    """The processes below this one that compute for an executor."""
    below = psutil.Process().children(recursive=True)
    if kind == "ray":
        return [p for p in below if (p.cmdline() or [""])[0].startswith("ray::work")]
    return [p for p in below if "spawn_main" in " ".join(p.cmdline())]


@pytest.mark.parametrize("text", ELSEWHERE)
def test_the_bytes_are_those_of_one_process_though_a_worker_is_killed(start, whole, text):
    executor = Executor.parse(text)
    pytest.importorskip({"dask": "distributed", "processes": "os"}.get(executor.kind, "ray"))
    killed, seen = [], []

    def kill(values, step):
        seen.append(step)
        if not killed:
            victim = workers(executor.kind)[0]
            killed.append(victim.pid)
            victim.kill()

    assert run(start, executor.kind, executor, log=kill) == whole
    assert killed and verify(start / executor.kind / "coupling").about.numerics["threads"] == 2
    assert seen == list(range(100, 1201, 100))
    assert not workers(executor.kind)


@dataclass(frozen=True)
class Fatal:
    """Kills its worker at item 3, as often as it is told; notes who computed what."""

    folder: Path
    times: int

    def on(self, device):
        return self.call

    def call(self, item):
        with (self.folder / str(item)).open("a") as file:
            file.write(f"{os.getpid()}\n")
        if item == 3 and len((self.folder / "3").read_text().split()) <= self.times:
            os.kill(os.getpid(), signal.SIGKILL)
        if item == 99:
            raise ReflowError("item 99 is a mistake")
        return item * item


def test_a_lost_worker_costs_its_item_only_and_a_mistake_is_not_tried_again(tmp_path):
    with start_workers(Executor.parse("processes:2"), Fatal(tmp_path, 1), CPU) as run_on:
        assert dict(run_on(range(8))) == {n: n * n for n in range(8)}
        tries = {n: (tmp_path / str(n)).read_text().split() for n in range(8)}
        assert {n: len(pids) for n, pids in tries.items()} == {n: 1 + (n == 3) for n in range(8)}
        assert len({*tries[3]}) == 2, "another worker takes it"
        with pytest.raises(ReflowError, match="^item 99 is a mistake$"):
            list(run_on([99]))
    assert len((tmp_path / "99").read_text().split()) == 1


@pytest.mark.long
def test_a_worker_that_is_lost_every_time_ends_the_work_in_one_line(tmp_path):
    with (
        pytest.raises(ReflowError, match="lost 3 times over the same work .*: out of memory") as e,
        start_workers(Executor.parse("processes:1"), Fatal(tmp_path, 9), CPU) as run_on,
    ):
        list(run_on([3, 4]))
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("batch", [100, 256, 1000])
def test_samples_on_an_executor_are_those_of_the_flow(start, batch):
    flow, noise = Flow.of(load(start / "model")), gaussian_noise(5, torch.arange(700).numpy(), (3,))
    solver = Solver(name="euler", steps=4)
    with start_workers(IN_PROCESS, SampleJob(flow, 1.0, CPU), CPU) as run_on:
        found = sampled(run_on, noise, solver, batch=batch)
    assert torch.equal(found.x, flow.sample(noise, solver, device=CPU, batch=batch).x)
    assert found.nfe == 4


def test_samples_on_an_executor_count_the_evaluations_of_each_row(start):
    flow, noise = Flow.of(load(start / "model")), gaussian_noise(5, torch.arange(60).numpy(), (3,))
    solver = Adaptive(name="dopri5", rtol=1e-4, atol=1e-4)
    with start_workers(IN_PROCESS, SampleJob(flow, 1.0, CPU), CPU) as run_on:
        found = sampled(run_on, noise, solver, batch=25)
    alone = flow.sample(noise, solver, device=CPU)
    assert torch.equal(found.evaluations, alone.evaluations) and found.nfe == alone.nfe
    assert mean_nfe(found) == float(alone.evaluations.double().mean()) <= found.nfe


def test_samples_from_two_processes_are_those_of_the_flow(start):
    flow, noise = Flow.of(load(start / "model")), gaussian_noise(5, torch.arange(700).numpy(), (3,))
    with start_workers(Executor.parse("processes:2"), SampleJob(flow, 1.0, CPU), CPU) as run_on:
        for steps in (1, 3):
            solver = Solver(name="euler", steps=steps)
            found = sampled(run_on, noise, solver, batch=100)
            assert torch.equal(found.x, flow.sample(noise, solver, device=CPU).x)


def test_a_worker_with_other_last_bits_refuses(start):
    job = pickle.dumps(SampleJob(Flow.of(load(start / "model")), 1.0, CPU))
    other = {"device": "cpu", "torch": "1.0", "threads": 1}
    with pytest.raises(ReflowError, match=r"round differently than the stage \(torch .* for 1.0\)"):
        work((), Payload(job, "cpu", other))


@pytest.mark.parametrize(
    "text", ["", "slurm", "processes:0", "processes:x", "ray:", "in-process:2", "http://a:1"]
)
def test_an_unknown_executor_is_refused_in_one_line(text):
    with pytest.raises(ReflowError, match="^executor: ") as error:
        Executor.parse(text)
    assert "\n" not in str(error.value)


def test_a_cluster_that_is_not_there_is_refused_in_one_line(monkeypatch):
    distributed = pytest.importorskip("distributed")
    assert distributed.__version__
    with (
        pytest.raises(ReflowError, match="tcp://127.0.0.1:9: is not available") as error,
        start_workers(Executor.parse("tcp://127.0.0.1:9"), Fatal(Path(), 0), CPU),
    ):
        pass
    assert "\n" not in str(error.value)


def test_workers_of_this_machine_are_as_many_as_its_cores_allow():
    assert Executor.parse("processes:7").count(CPU) == 7
    assert Executor.parse("processes").count(CPU) == max(1, (os.cpu_count() or 1) // 2)
    assert IN_PROCESS.count(CPU) == 1


@pytest.fixture
def ray_cluster(tmp_path_factory):
    """A cluster that runs already, as `ray start --head` leaves one, with Ray's token."""
    ray = [str(Path(sys.executable).parent / "ray")]
    with socket.socket() as first, socket.socket() as second:
        first.bind(("127.0.0.1", 0))
        second.bind(("127.0.0.1", 0))
        ports = [s.getsockname()[1] for s in (first, second)]
    head = [f"--port={ports[0]}", f"--ray-client-server-port={ports[1]}", "--num-cpus=2"]
    options = ["--head", *head, "--include-dashboard=false", "--disable-usage-stats", "--block"]
    with (tmp_path_factory.mktemp("ray") / "log").open("w") as log:
        cluster = subprocess.Popen([*ray, "start", *options], stdout=log, stderr=log)
    deadline = time.monotonic() + 60
    while socket.socket().connect_ex(("127.0.0.1", ports[1])) and time.monotonic() < deadline:
        time.sleep(0.2)
    yield f"ray://127.0.0.1:{ports[1]}"
    cluster.terminate()  # and with it what it started; another cluster of the user lives on
    cluster.wait(30)


RUN = """
import sys
from pathlib import Path
import torch
from fmcore.work.executor import Executor
from tests.fmcore.work.test_executor import run
torch.set_num_threads(2)
run(Path(sys.argv[1]), "cluster", Executor.parse(sys.argv[2]))
"""


@pytest.mark.slow
@pytest.mark.long
def test_a_ray_cluster_by_address_gives_the_same_bytes(start, whole, ray_cluster):
    """In a process of its own: Ray decides once a process whether it shows a token."""
    command = [sys.executable, "-c", RUN, str(start), ray_cluster]
    done = subprocess.run(command, cwd=SOURCE, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert {p.name: p.read_bytes() for p in (start / "cluster/coupling").iterdir()} == whole


@pytest.mark.long
@pytest.mark.slow
def test_a_dask_cluster_by_address_gives_the_same_bytes(start, whole):
    from distributed import LocalCluster

    torch.set_num_threads(2)
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        assert run(start, "scheduler", Executor.parse(cluster.scheduler_address)) == whole
