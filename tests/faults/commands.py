"""Faults at the calls of commands that write beside the stages: publish, push, a deployed run.

A command is disturbed, and run again; what it made must then be what an undisturbed one makes.
"""

import contextlib
import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests import tiny_chain
from tests.faults.harness import KINDS, Harness, wrong_end

NIGHT = "night"
STEPS = 44


def records(root: Path) -> None:
    """Make MLflow's data base and the project's experiment."""
    from flows.tracking.client import Tracker

    Tracker(root)


def publish(root: Path) -> None:
    """Write the records of MLflow, the models left out: they take ten times as long."""
    from flows.tracking.publish import publish as publish_

    publish_(root, models=False)


def push(root: Path) -> None:
    """Send the results of all runs to the remote."""
    from flows.dag.outputs import store

    store.push_runs(root, store.default_remote(root))


def deployed(root: Path) -> None:
    """Do what a deployed run does around its stages: a worktree, its parameters, a commit."""
    from flows.deploy import worktree
    from flows.deploy.order import Order

    order = Order(overrides={"rounds.rf1.train.steps": STEPS})
    folder = worktree.make(root, order, NIGHT)
    (folder / "made").write_text("by the run")
    worktree.keep(root, NIGHT, done=True)


def published(root: Path) -> str:
    """Return what MLflow holds, without what differs each time: times and numbers of runs."""
    from flows.tracking.client import Tracker

    tracker, found = Tracker(root), []
    names = {
        r.info.run_id: r.info.run_name for r in tracker.client.search_runs([tracker.experiment])
    }
    for run, name in names.items():
        data, known = tracker.client.get_run(run).data, tracker.client
        points = [
            (m, p.step, p.value) for m in data.metrics for p in known.get_metric_history(run, m)
        ]
        files = [f.path for f in known.list_artifacts(run)]
        tags = {k: names.get(v, v.replace(run, name)) for k, v in data.tags.items()}
        found.append([name, tags, data.params, sorted(points), sorted(files)])
    return json.dumps(sorted(found, key=lambda row: str(row[0])), sort_keys=True)


def pushed(root: Path) -> str:
    """Return the files of the remote with their sizes."""
    remote = root.parent / "remote"
    files = (f for f in remote.rglob("*") if f.is_file() and not f.name.endswith(".tmp"))
    return json.dumps(sorted((str(f.relative_to(remote)), f.stat().st_size) for f in files))


def kept(root: Path) -> str:
    """Return the tree of the run's branch, and the worktrees."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(root), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    there = [line for line in git("worktree", "list").splitlines() if NIGHT in line]
    return git("rev-parse", f"reflow/{NIGHT}^{{tree}}") + str(there)


@dataclass(frozen=True)
class Command:
    """What is disturbed, and what is looked at afterwards."""

    run: Callable[[Path], None]
    made: Callable[[Path], str]


COMMANDS = {
    "records": Command(records, published),
    "publish": Command(publish, published),
    "push": Command(push, pushed),
    "deployed": Command(deployed, kept),
}


@dataclass
class Commands:
    """A project with its remote beside it, and by command what it shall make."""

    harness: Harness
    calls: dict[str, list[str]] = field(default_factory=dict)
    expected: dict[str, str] = field(default_factory=dict)

    @property
    def box(self) -> Path:
        """The folder of project and remote, whose calls are counted."""
        return self.harness.folder / "box"

    def build(self) -> None:
        """Run a chain, and each command once, undisturbed."""
        root = self.box / "project"
        root.mkdir(parents=True)
        with contextlib.chdir(root):
            project = tiny_chain.build(root)
        project.sh("dvc", "remote", "add", "-q", "-d", "near", "../../remote")
        project.sh("git", "add", "-A")
        project.sh("git", "commit", "-qm", "a round")
        shutil.copytree(self.box, self._before("records"), symlinks=True)
        for name in COMMANDS:
            if name != "records":
                self.restore(name)
            done = self.harness.send(name, self.box, 1)
            assert done.code == 0, done.said
            self.calls[name], self.expected[name] = done.calls, self.made(name)
            if name == "records":  # an empty data base, from which the other commands start
                shutil.copytree(self.box, self._before("others"), symlinks=True)

    def _before(self, name: str) -> Path:
        first = name == "records"
        return self.harness.folder / ("box without records" if first else "box with records")

    def restore(self, name: str) -> None:
        """Put the project back to where the command has not run."""
        shutil.rmtree(self.box)
        shutil.copytree(self._before(name), self.box, symlinks=True)

    def made(self, name: str) -> str:
        """Return what a command made, as one text."""
        done = self.harness.send(f"{name} made", self.box, 0)
        assert done.code == 0, done.said
        return done.said.splitlines()[-1]

    def trial(self, name: str, kind: str, at: int) -> list[str]:
        """Disturb a command, run it again, and return what is wrong."""
        self.restore(name)
        wrong = wrong_end(self.harness.send(name, self.box, KINDS[kind], at), kind)
        again = self.harness.send(name, self.box)
        if again.code:
            return [*wrong, f"the next run ended with {again.code}: {again.said.strip()}"]
        if (found := self.made(name)) != self.expected[name]:
            wrong.append(f"expected {self.expected[name]}, got {found}")
        return wrong
