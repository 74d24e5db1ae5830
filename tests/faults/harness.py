"""Faults at the calls of a stage, one trial each: what must hold afterwards, and their number.

A whole enumeration, as a table: `python -m tests.faults.harness [NAMES] [every=N] [whole]`; a name
is that of a stage or of a command.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import safe_open

from flows.dag import inputs
from tests.conftest import SOURCE
from tests.faults.stages import PARAMS, STAGES

OFF, COUNT = 0, 1
KINDS = {"kill": 2, "full": 3, "eio": 4, "torn": 5}
"""kill before the call; no space from the call on; EIO once; half of a write, then kill."""


def points(calls: list[str], kind: str) -> list[int]:
    """Return the numbers of the calls at which a kind of fault differs from the other kinds."""
    return [n for n, call in enumerate(calls, 1) if kind != "torn" or call.startswith("write ")]


@dataclass(frozen=True)
class Done:
    """How a stage ended: exit status (-9: killed), what it printed, the calls it made."""

    code: int
    said: str
    calls: list[str]


def compiled(folder: Path) -> Path | None:
    """Compile calls.c; None without a compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if not compiler or not sys.platform.startswith("linux"):
        return None
    made = folder / "calls.so"
    source = str(Path(__file__).with_name("calls.c"))
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", made, source, "-ldl"], check=True)
    return made


@dataclass
class Harness:
    """A server of stages, and by stage the project before it and the bytes that it shall write.

    A `whole` stage works in a project of DVC, inside the guard; the others leave both out.
    """

    folder: Path
    server: "subprocess.Popen[str]"
    whole: bool = False
    calls: dict[str, list[str]] = field(default_factory=dict)
    expected: dict[str, dict[str, bytes]] = field(default_factory=dict)

    @property
    def root(self) -> Path:
        """The project that every trial works in."""
        return self.folder / "project"

    def run(self, stage: str, kind: int = OFF, at: int = 0) -> Done:
        """Run a stage in a child of the server."""
        return self.send(stage, self.root, kind, at)

    def send(self, stage: str, root: Path, kind: int = OFF, at: int = 0) -> Done:
        """Run a stage or a command in a child of the server; calls below `root` count."""
        log, out = self.folder / "log", self.folder / "out"
        told = {
            "root": str(root), "stage": stage, "kind": kind, "at": at, "whole": self.whole,
            "log": str(log), "out": str(out), "modules": str(self.folder / "modules"),
        }  # fmt: skip
        assert self.server.stdin and self.server.stdout
        self.server.stdin.write(json.dumps(told) + "\n")
        self.server.stdin.flush()
        code = json.loads(self.server.stdout.readline())["code"]
        return Done(code, out.read_text(errors="replace"), log.read_text().splitlines())

    def build(self) -> None:
        """Run the chain once, undisturbed; count the calls of each stage."""
        self.root.mkdir()
        (self.root / "params.yaml").write_text(PARAMS)
        if self.whole:
            shutil.copy(SOURCE / "dvc.yaml", self.root)
            for command in ("git init -q", "dvc init -q"):
                subprocess.run(command.split(), cwd=self.root, check=True)
            inputs.write(self.root)
        for number, stage in enumerate(STAGES):
            shutil.copytree(self.root, self.folder / f"before {stage}")
            done = self.run(stage, COUNT)
            assert done.code == 0, done.said
            self.calls[stage] = done.calls
            self.expected[stage] = self.bytes_of(stage)
            assert self.expected[stage], f"stage {number}, {stage}, wrote nothing"
            shutil.rmtree(self.root / ".reflow")

    def bytes_of(self, stage: str) -> dict[str, bytes]:
        """Return the content of every output of a stage, by path."""
        outs = [self.root / out for out in STAGES[stage].outs]
        if stage == "shards":
            outs = [self.scratch(stage) / "shards"]
        files = [f for out in outs for f in ([out] if out.is_file() else out.rglob("*"))]
        # `couple` removes what a killed job left half-written beside the shards.
        files = [f for f in files if f.is_file() and not f.name.endswith(".tmp")]
        return {str(f.relative_to(self.root)): f.read_bytes() for f in files}

    def scratch(self, stage: str) -> Path:
        """Return the scratch folder of a stage."""
        name = "couple@rf1" if stage == "shards" and self.whole else stage
        folder = self.root / ".reflow" / "scratch" / name
        return next((f for f in folder.glob("*") if f.is_dir()), folder / "fingerprint")

    def trial(self, stage: str, kind: str, at: int) -> list[str]:
        """Disturb a stage, delete its outputs as DVC does, run it again; return what is wrong."""
        shutil.rmtree(self.root)
        shutil.copytree(self.folder / f"before {stage}", self.root)
        first = self.run(stage, KINDS[kind], at)
        wrong = wrong_end(first, kind)
        if first.code == 0 and self.bytes_of(stage) != self.expected[stage]:
            wrong.append("it said that it had succeeded, with other bytes")
        scratch = self.scratch(stage)
        adopts = (scratch / "finished" / "files.json").exists()
        shards = {f: f.stat().st_ino for f in scratch.glob("shards/part-*.parquet")}
        step = _step(scratch / "checkpoint.safetensors")
        for out in STAGES[stage].outs:
            path = self.root / out
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        again = self.run(stage)
        if again.code:
            return [*wrong, f"the next run ended with {again.code}: {again.said.strip()}"]
        if self.bytes_of(stage) != self.expected[stage]:
            wrong.append("the next run wrote other bytes")
        if adopts and "taken as they are" not in again.said:
            wrong.append("finished outputs were made again")
        if not all(f.exists() and f.stat().st_ino == node for f, node in shards.items()):
            wrong.append("a finished shard was sampled again")
        if step and not adopts and (first_step := _first_trained(scratch)) <= step:
            wrong.append(f"step {first_step} was trained again, the checkpoint was at {step}")
        return wrong


def wrong_end(done: Done, kind: str) -> list[str]:
    """Return what is wrong about how a disturbed stage ended and what it said."""
    if kind in ("kill", "torn"):
        return [] if done.code == -9 else [f"exit status {done.code}, expected a kill: {done.said}"]
    errors = [line for line in done.said.splitlines() if line.startswith("error: ")]
    if "Traceback" in done.said or (done.code and (done.code != 2 or len(errors) != 1)):
        return [f"exit status {done.code}, expected one line that begins with error: {done.said}"]
    return []


def _step(checkpoint: Path) -> int:
    if not checkpoint.exists():
        return 0
    with safe_open(checkpoint, framework="numpy") as file:
        return int(file.metadata()["step"])


def _first_trained(scratch: Path) -> int:
    lines = (scratch.parent / "events.jsonl").read_text().splitlines()[1:]
    return min((e["step"] for e in map(json.loads, lines) if e["values"]), default=sys.maxsize)


@contextmanager
def started(folder: Path, *, whole: bool = False) -> Iterator[Harness | None]:
    """Yield a harness whose chain has run once; None without a compiler."""
    made = compiled(folder)
    if made is None:
        yield None
        return
    env = {
        **os.environ, "LD_PRELOAD": str(made), "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1",
        "MPLCONFIGDIR": str(folder / "matplotlib"), "PYTHONWARNINGS": "ignore",
    }  # fmt: skip
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.faults.server"],
        cwd=SOURCE, env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert server.stdin and server.stdout
    try:
        assert server.stdout.readline() == "ready\n"
        harness = Harness(folder, server, whole)
        harness.build()
        yield harness
    finally:
        server.stdin.close()
        server.wait()


Trial = Callable[[str, str, int], list[str]]


def row(name: str, calls: list[str], trial: Trial, every: int) -> tuple[int, int]:
    """Try every kind of fault at every `every`-th call, print a row; return trials and failures."""
    cells, tried, failed = [], 0, 0
    for kind in KINDS:
        chosen = points(calls, kind)[::every]
        bad = {at: wrong for at in chosen if (wrong := trial(name, kind, at))}
        print(f"{name} {kind}: {len(chosen)} trials", file=sys.stderr, flush=True)
        for at, wrong in bad.items():
            print(f"{name} {kind} {at} ({calls[at - 1]}): {wrong}", file=sys.stderr, flush=True)
        cells.append(f"{len(chosen) - len(bad)} of {len(chosen)}")
        tried, failed = tried + len(chosen), failed + len(bad)
    kinds = Counter(call.split()[0] for call in calls)
    said = ", ".join(f"{n} {what}" for what, n in sorted(kinds.items()))
    print(f"| {name} | {len(calls)} | {' | '.join(cells)} | {said} |", flush=True)
    return tried, failed


def main(names: list[str], every: int = 1, *, whole: bool = False) -> int:
    """Try every kind of fault at every call, or at each `every`-th; print a table."""
    from tests.faults.commands import COMMANDS, Commands

    began, counts = time.monotonic(), []
    with tempfile.TemporaryDirectory() as folder, started(Path(folder), whole=whole) as harness:
        assert harness, "a C compiler is needed"
        print("| stage | calls | " + " | ".join(KINDS) + " | kinds of call |")
        print("|---|---|" + "---|" * len(KINDS) + "---|")
        for stage in [n for n in names or STAGES if n in STAGES]:
            counts.append(row(stage, harness.calls[stage], harness.trial, every))
        if wanted := [n for n in names or COMMANDS if n in COMMANDS]:
            commands = Commands(harness)
            commands.build()
            for name in wanted:
                counts.append(row(name, commands.calls[name], commands.trial, every))
    tried, failed = (sum(part) for part in zip(*counts, strict=True))
    print(f"\n{tried} trials, {failed} failed, {time.monotonic() - began:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    numbers = [int(word[6:]) for word in sys.argv if word.startswith("every=")]
    chosen = [word for word in sys.argv[1:] if word != "whole" and "=" not in word]
    sys.exit(main(chosen, *numbers, whole="whole" in sys.argv))
