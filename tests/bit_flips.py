"""Flip bits of every kind of file that the project writes, and see whether its reader notices.

A flip keeps the file's inode, size and times, as rot does. `python -m tests.bit_flips` flips every
byte of the small files and prints the counts of benchmarks/2026-11_bit_flips.md.
"""

import json
import os
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from flows.dag import inputs, lineage, plan
from flows.dag.chain import chain
from flows.dag.description import Description, describe
from flows.dag.outputs import verify
from flows.dag.outputs.content import reader
from flows.dag.receipts import curve, metrics, note_timings, timings
from flows.project.events import Reader, Writer
from flows.tracking import marker
from fmcore.coupling.read import open_coupling, read
from fmcore.coupling.verify import verify as verify_coupling
from fmcore.coupling.write import finish, is_whole, shard_name, table, write_shard
from fmcore.features.extractor import Extractor
from fmcore.measure import yardstick
from fmcore.network.store import load
from fmcore.settings import ReflowError
from fmcore.train import Train
from fmcore.training.checkpoint import load_state, save_state
from fmcore.training.fit import new_state
from fmcore.verdict.comparison import Comparison
from tests import tiny_chain

OUTCOMES = ("caught", "harmless", "traceback", "silent")
Read = Callable[[], Any]


@dataclass(frozen=True)
class Kind:
    """A kind of file: one of them, and what reads it; `slow` readers open the whole project."""

    name: str
    file: Path
    read: Read
    slow: bool = False


@dataclass(frozen=True)
class Place:
    """The tiny chain in a folder, with files of the kinds that a chain leaves only when killed."""

    root: Path

    @cached_property
    def entries(self) -> dict[str, Any]:
        """What dvc.lock records."""
        return lineage.lock_entries(self.root)

    def kinds(self) -> Iterator[Kind]:
        """Yield every kind of file."""
        yield from self._models()
        yield from self._couplings()
        yield from self._measures()
        yield from self._scratch()
        yield from self._local()
        yield from self._dvc()

    def _models(self) -> Iterator[Kind]:
        folder = self.root / "models/rf1"
        yield Kind("model: config.json", folder / "config.json", partial(_weights, folder, "ema"))
        for name, kind in (("model", "ema"), ("raw", "raw")):
            file = folder / f"{name}.safetensors"
            yield Kind(f"model: {file.name}", file, partial(_weights, folder, kind))

    def _couplings(self) -> Iterator[Kind]:
        for name in ("independent", "rf1"):
            folder = self.root / "couplings" / name
            for file in (folder / "_manifest.json", folder / shard_name(0)):
                yield Kind(f"coupling {name}: {file.name}", file, partial(_pairs, folder))
        folder = self.root.parent / "compact"
        if not folder.exists():
            _compacted(self.root / "couplings/rf1", folder)
        for name in (shard_name(0), "_manifest.json"):
            yield Kind(f"compact coupling: {name}", folder / name, partial(_pairs, folder))
        file = self.root / "couplings/rf1/part-00001.parquet"
        yield Kind("coupling, all of it verified", file, lambda: verify_coupling(file.parent).about)

    def _measures(self) -> Iterator[Kind]:
        folder = self.root.parent / "classifier"
        if not folder.exists():
            plain = yardstick.load(self.root / "yardstick")
            torch.manual_seed(0)
            network = Extractor((1, 4, 4), 2, 1).eval()
            about = {**plain.about, "fingerprint": yardstick.fingerprint(network)}
            yardstick.save(folder, replace(plain, extractor=network, about=about))
        names = ("yardstick.json", "reference.safetensors")
        for name in (*names, "extractor/config.json", "extractor/model.safetensors"):
            yield Kind(f"yardstick: {name}", folder / name, partial(_yardstick, folder))
        trained, measured = self.entries["train@rf1"], self.entries["evaluate@rf1"]
        for path, found in (
            ("metrics/train/rf1.json", partial(metrics, self.root, trained)),
            ("metrics/evaluate/rf1.json", partial(metrics, self.root, measured)),
            ("curves/train/rf1.csv", partial(curve, self.root, trained, "curve")),
            ("curves/straightness/rf1.csv", partial(curve, self.root, measured, "straightness")),
        ):
            yield Kind(f"{path}, by publish", self.root / path, found)
        for path in ("pictures/rf1/samples.png", "comparison/rounds.csv"):
            shown = partial(_shown, self.root, path)
            yield Kind(f"{path}, by the page", self.root / path, shown, slow=True)
        file = self.root / "comparison/rounds.json"
        yield Kind("rounds.json", file, lambda: Comparison.read(file.read_bytes(), "rounds.json"))

    def _scratch(self) -> Iterator[Kind]:
        folder = self.root.parent / "checkpoint"
        network = load(self.root / "models/rf1").network.requires_grad_(True)
        settings = Train(steps=9)
        if not folder.exists():
            save_state(folder, new_state(network, settings))
        kept = {file.name: file.read_bytes() for file in folder.iterdir()}

        def resumed() -> Any:
            state = new_state(network, settings)
            found = load_state(folder, state, lambda line: None)
            for name, content in kept.items():  # a damaged one was removed
                if not (folder / name).exists():
                    (folder / name).write_bytes(content)
            if not found:
                raise ReflowError("told in one line, and trained again")
            return [v.tolist() for v in state.network.state_dict().values()]

        yield Kind("checkpoint", folder / "checkpoint.safetensors", resumed)
        opened = open_coupling(self.root / "couplings/rf1")
        pairs = read(opened, limit=40)
        shard = self.root.parent / "shards"
        rows = table(opened.about, pairs.pair_id.numpy(), pairs.target, pairs.source)
        file = write_shard(shard, 0, rows)

        def gathered() -> bool:
            if not is_whole(file, opened.about, range(len(rows))):
                raise ReflowError("sampled again")
            return True

        yield Kind("gathered shard", file, gathered)
        yield Kind("gathered shard: its hash", shard / f".{file.name}.sha256", gathered)

    def _local(self) -> Iterator[Kind]:
        whole = chain(self.entries, self.entries)
        about = self.root.parent / "chain.json"
        about.write_text(json.dumps(describe(whole, reader(self.root), "abc").as_json()))
        yield Kind("chain.json", about, lambda: Description.read(about.read_bytes(), "chain.json"))
        note_timings(self.root, {"train@rf1": 12.5})
        file = self.root / ".reflow/timings.json"
        yield Kind("timings.json", file, lambda: _or_none(timings(self.root)))
        os.environ["MLFLOW_TRACKING_URI"] = "http://127.0.0.1:1"
        marker.note(self.root, marker.lock_hash(self.root), "0123456789abcdef")
        file = marker._file(self.root)
        yield Kind("note of MLflow", file, lambda: _or_none(marker.published(self.root)))
        file = self.root.parent / "events.jsonl"
        with Writer(file, "train@rf1", 9) as writer:
            for step in range(9):
                writer.write(step, {"loss": step / 7})
        yield Kind("events.jsonl", file, partial(_events, file))

    def _dvc(self) -> Iterator[Kind]:
        def guarded(stage: str) -> Any:
            found = lineage.inputs(self.root, stage, read=True)
            if found.damaged or lineage.stale(self.root, found):
                raise ReflowError("the guard of the stage refuses it")
            return True

        for path, stage in (
            ("metrics/evaluate/rf1.json", "compare"),
            ("curves/straightness/rf1.csv", "compare"),
            ("yardstick/reference.safetensors", "compare"),
            ("models/rf1/model.safetensors", "couple@rf1"),
            ("inputs/train/rf1.json", "train@rf1"),
        ):
            read = partial(guarded, stage)
            yield Kind(f"{path}, by the guard of {stage}", self.root / path, read, slow=True)
        lock = self.root / "dvc.lock"
        yield Kind("dvc.lock", lock, partial(_locked, self.root), slow=True)
        objects = sorted((self.root / ".dvc/cache/files/md5").glob("??/*"))
        yield Kind("object of DVC's cache", objects[0], partial(_verified, self.root), slow=True)


def _weights(folder: Path, weights: Any) -> Any:
    model = load(folder, weights=weights)
    return model.digest, [v.tolist() for v in model.network.state_dict().values()]


def _pairs(folder: Path) -> Any:
    opened = open_coupling(folder)
    pairs = read(opened)
    return opened.about, opened.shards, pairs.target.tolist(), pairs.source.tolist()


def _compacted(coupling: Path, folder: Path) -> None:
    """Write some pairs of a coupling of generated pairs without their sources, in bytes."""
    opened = open_coupling(coupling)
    store = {"source": False, "target": "uint8", "low": -9.0, "high": 9.0}
    about = opened.about.model_copy(update={"store": store, "pairs": 40})
    pairs = read(opened, limit=40)
    write_shard(folder, 0, table(about, pairs.pair_id.numpy(), pairs.target, pairs.source))
    finish(folder, about, 1)


def _yardstick(folder: Path) -> Any:
    found = yardstick.load(folder)
    tensors = [t for c in found.cuts for t in (c.stats.mean, c.stats.m2, c.features, c.points)]
    tensors.append(found.train)
    return found.about, [t.tolist() for t in tensors]


def _shown(root: Path, path: str) -> Any:
    return reader(root)(path)


def _or_none(found: Any) -> Any:
    """Return what was read; what reads as absent is made again, so it counts as noticed."""
    if not found:
        raise ReflowError("made again")
    return found


def _events(file: Path) -> Any:
    """Read events as the screen does; live records are completed from the receipts later."""
    follower = Reader(file.with_name("none"))
    follower.path = file
    follower.read()
    follower.close()
    return True


def _locked(root: Path) -> Any:
    """Return what dvc.lock says; a stage that would run again counts as noticed."""
    planned = [p for p in plan.plan(root) if p.stage != inputs.STAGE]
    if any(p.state != "unchanged" for p in planned) or verify.check(root, cache=False).faults:
        raise ReflowError("the plan, or verify, says that something differs")
    return True  # sizes and counts are for people; no result depends on them


def _verified(root: Path) -> Any:
    if faults := verify.check(root).faults:
        raise ReflowError(str(faults[0]))
    return True


def damaged(file: Path, content: bytes, outcome: Callable[[], str]) -> str:
    """Return `outcome()` while the file has another content, with the same times and inode."""
    before, mode = file.read_bytes(), file.stat()
    _put(file, content, mode)
    try:
        return outcome()
    finally:
        _put(file, before, mode)


def _put(file: Path, content: bytes, status: os.stat_result) -> None:
    file.touch()
    file.chmod(0o644)
    file.write_bytes(content)
    file.chmod(status.st_mode & 0o777)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def outcome(read: Read, expected: Any) -> str:
    """Return how a reader takes a damaged file."""
    try:
        found = read()
    except ReflowError as error:
        return "caught" if "\n" not in str(error) else "traceback"
    except Exception as error:
        print(f"  {type(error).__name__}: {error}", file=sys.stderr)
        return "traceback"
    return "harmless" if found == expected else "silent"


def flips(content: bytes, count: int | None, seed: int) -> Iterator[bytes]:
    """Yield `content` with one bit flipped: in `count` places, or in every byte; then it cut."""
    draw = random.Random(seed)
    places = range(len(content))
    if count is not None:
        places = sorted(draw.sample(places, min(count, len(content))))
    for place in places:
        changed = bytearray(content)
        changed[place] ^= 1 << draw.randrange(8)
        yield bytes(changed)
    for cut in (0, len(content) // 2, len(content) - 1):
        yield content[:cut]


def tried(kind: Kind, count: int | None, seed: int = 0) -> Counter[str]:
    """Damage a file of a kind in many ways and count the outcomes."""
    expected = kind.read()
    found: Counter[str] = Counter()
    for content in flips(kind.file.read_bytes(), count, seed):
        said = damaged(kind.file, content, lambda: outcome(kind.read, expected))
        if said in ("silent", "traceback"):
            print(f"{kind.name}: {said}", file=sys.stderr)
        found[said] += 1
    assert kind.read() == expected
    return found


def counts(place: Place, most: int, most_slow: int) -> Iterator[str]:
    """Yield the rows of the table of all kinds: every byte, or `most` places of a larger file."""
    total: Counter[str] = Counter()
    yield "| file | bytes | tried | " + " | ".join(OUTCOMES) + " |"
    yield "|" + "---|" * (3 + len(OUTCOMES))
    for kind in place.kinds():
        size, limit = kind.file.stat().st_size, most_slow if kind.slow else most
        found = tried(kind, None if size <= limit else limit)
        total += found
        cells = [size, sum(found.values()), *(found[o] for o in OUTCOMES)]
        yield f"| {kind.name} | " + " | ".join(f"{c:,}" for c in cells) + " |"
    cells = [sum(total.values()), *(total[o] for o in OUTCOMES)]
    yield "| all | | " + " | ".join(f"{c:,}" for c in cells) + " |"


if __name__ == "__main__":
    from flows.project import environment

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "chain"
        root.mkdir()
        os.chdir(root)
        environment.configure(root)
        tiny_chain.build(root)
        for line in counts(Place(root), *map(int, sys.argv[1:])):
            print(line, flush=True)
