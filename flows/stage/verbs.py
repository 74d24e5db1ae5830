"""Run the verb of a `cmd` of dvc.yaml: `python -m flows.stage VERB [KEY] name=path ...`.

Paths come from dvc.yaml, settings from params.yaml; a verb of `fmcore` does the work inside the
guard (lock, checkpoints, inputs unchanged while running).
"""

import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from flows.params.load import FILE, SCRATCH, Params, load, maker, parents
from flows.params.seeds import seed_of
from flows.project.environment import configure, find_root
from flows.project.locks import EX_DATAERR, EX_TEMPFAIL, Busy, Damaged
from flows.stage import finished, taken
from flows.stage.guard import guarded, has_checkpoint, scratch_of
from flows.stage.imports import pairs_of
from flows.stage.progress import Reporter
from flows.stage.torchrun import launch
from flows.stage.words import KEYED, read_words
from flows.stage.work import warn, work_of
from fmcore.settings import ReflowError, derive_seed
from fmcore.training.processes import rank, started

if TYPE_CHECKING:
    from fmcore.compare import RoundName

Paths = dict[str, Path]


def _say(text: str) -> None:
    print(text, flush=True)


def _prepare(params: Params, _: str, paths: Paths, scratch: Path) -> None:
    from fmcore.prepare import prepare

    seed, codec = seed_of(params, "prepare"), params.data.codec
    given = partial(
        prepare, paths["out"], params.data, params.source,
        seed=seed, metrics=paths["metrics"], say=_say, warn=warn,
    )  # fmt: skip
    if codec is None:
        given()
        return
    with Reporter("prepare", getattr(codec, "steps", 0), scratch) as log:
        given(work=work_of(params, scratch, log, seed=seed))


def _initialise(params: Params, _: str, paths: Paths, __: Path) -> None:
    from fmcore.initialise import initialise

    seed = derive_seed(params.seed, "initialise")
    initialise(paths["data"], paths["out"], params.network, seed=seed)


def _calibrate(params: Params, _: str, paths: Paths, scratch: Path) -> None:
    from fmcore.calibrate import calibrate

    with Reporter("calibrate", params.yardstick.features.epochs, scratch) as log:
        work = work_of(params, scratch, log, seed=seed_of(params, "calibrate"))
        calibrate(**paths, settings=params.yardstick, work=work, say=_say, warn=warn)


def _train(params: Params, key: str, paths: Paths, scratch: Path) -> None:
    from fmcore.coupling.read import open_coupling
    from fmcore.measure.preview import Preview
    from fmcore.network.store import redrawn
    from fmcore.train import train

    settings, seed = params.rounds[key].train, seed_of(params, "train", key)
    if settings is None:
        from flows.stage.adopted import adopt_round

        adopt_round(find_root(Path.cwd()), params, key, paths, scratch)
        return
    if params.rounds[key].replicate and params.rounds[key].init == SCRATCH:
        fresh = derive_seed(seed, "initialise")
        paths = {**paths, "init": redrawn(paths["init"], scratch / f"init-{rank()}", seed=fresh)}
    if params.rounds[key].continue_ and not has_checkpoint(scratch):
        print(
            f"continue: no earlier training of {key} is left; it starts from its init", flush=True
        )
    if "ema" in settings.model_fields_set and (short := settings.short_average()) and rank() == 0:
        print(f"warning: {short}", flush=True)
    with Reporter(f"train@{key}", settings.steps, scratch, shown=rank() == 0) as log:
        work = work_of(params, scratch, log, seed=seed)
        if rank() == 0:
            look = Preview(open_coupling(paths["coupling"]), settings, seed, log.show)
            work = replace(work, look=look)
        train(**paths, settings=settings, name=key, work=work)


def _couple(params: Params, key: str, paths: Paths, scratch: Path) -> None:
    from fmcore.couple import couple

    root = find_root(Path.cwd())
    settings, earlier = pairs_of(root, params, key), taken.shards(root, f"couple@{key}")
    with Reporter(f"couple@{key}", settings.pairs or 0, scratch) as log:
        work = work_of(params, scratch, log, seed=seed_of(params, "couple", key))
        couple(**paths, settings=settings, work=work, earlier=earlier)


def _evaluate(params: Params, key: str, paths: Paths, scratch: Path) -> None:
    from fmcore.evaluate import EvaluatePaths, evaluate

    samplers = len(set(params.evaluate.nfe)) + len(params.evaluate.solvers)
    with Reporter(f"evaluate@{key}", samplers, scratch) as log:
        work = work_of(params, scratch, log, seed=seed_of(params, "evaluate"))
        evaluate(EvaluatePaths(**paths), params.evaluate, work)


def round_names(params: Params) -> "list[RoundName]":
    """Return the rounds of params.yaml as `compare` wants them."""
    from fmcore.compare import RoundName

    return [
        RoundName(
            name=name,
            coupling=round_.coupling,
            parent=maker(params, name),
            student=round_.train is not None and round_.train.student,
            replicate_of=round_.replicate_of,
            replicate=round_.replicate,
            needs=tuple(parents(params, name)),
        )
        for name, round_ in params.rounds.items()
    ]


def _compare(params: Params, _: str, paths: Paths, __: Path) -> None:
    from fmcore.compare import compare
    from fmcore.verdict.drawing import data_name

    compare(round_names(params), params.gates, **paths, data=data_name(params.data.model_dump()))


VERBS: dict[str, Callable[[Params, str, Paths, Path], None]] = {
    "prepare": _prepare,
    "initialise": _initialise,
    "calibrate": _calibrate,
    "train": _train,
    "couple": _couple,
    "evaluate": _evaluate,
    "compare": _compare,
}


def main(arguments: list[str]) -> int:
    """Run one stage and return 0; on failure print why and return 2.

    It is 75 if a retry may succeed, 65 if it may when a damaged input is mended.
    """
    return reported(partial(_run, arguments))


def reported(work: Callable[[], int | None]) -> int:
    """Call `work` and return its exit status, 0 if it gives none; say in one line why it failed."""
    try:
        return work() or 0
    except Busy as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return EX_TEMPFAIL
    except Damaged as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return EX_DATAERR
    except ReflowError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2
    except MemoryError:
        print("error: out of memory; lower batch or memory_mb", file=sys.stderr, flush=True)
        return 137
    except OSError as error:
        what = f"{error.filename}: " if error.filename else ""
        print(f"error: {what}{error.strerror or error}", file=sys.stderr, flush=True)
        return 2


def _run(arguments: list[str]) -> int | None:
    command = read_words(arguments)
    verb, key = command.verb, command.key
    paths = {name: Path(path) for name, path in command.paths.items()}
    root = find_root(Path.cwd())
    configure(root)
    params = load(root / FILE)
    name = f"{verb}@{key}" if key else verb
    known = list(params.couplings if verb == "couple" else params.rounds)
    if key and key not in known:
        has = ", ".join(known) or "none"
        raise ReflowError(f"stage {name}: no {KEYED[verb]} {key!r}; params.yaml has: {has}")
    if not started() and taken.take(root, name):
        return 0
    training = params.rounds[key].train if verb == "train" else None
    count = training.processes if training else 1
    if count > 1 and not started():
        return launch(count, arguments, params.compute.threads)
    if rank():  # only the process of rank 0 holds the guard
        VERBS[verb](params, key, paths, scratch_of(root, name))
        return 0
    continues = verb == "train" and params.rounds[key].continue_
    with guarded(root, name, continues=continues) as scratch:
        # Processes that train together must all do the same: they resume from the checkpoint.
        if count > 1 or not finished.adopted(root, scratch, name):
            VERBS[verb](params, key, paths, scratch)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
