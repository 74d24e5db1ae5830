"""The commands of the library of couplings: `reflow couplings`, `... get`, and `reflow couple`."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli import complete
from flows.cli.console import AsJson, err, one_line_errors, out, project, say
from fmcore.settings import ReflowError

if TYPE_CHECKING:
    from flows.cli.load import Watch

app = typer.Typer(help="The library of couplings: list every version, fetch one.")


@app.callback(invoke_without_command=True)
def couplings(
    context: typer.Context,
    as_json: AsJson = False,
    offline: Annotated[bool, typer.Option("--offline", help="Do not ask the remotes.")] = False,
) -> None:
    """List every version of every coupling: commit, hash, solver, gap, pairs, where it is kept."""
    from flows.library import history, places

    if context.invoked_subcommand:
        return
    with one_line_errors():
        root = project()
        found = history.versions(root)
        asked = places.places(root, found, ask_remotes=not offline)
        for silent in [place for place in asked if place.error]:
            err.print(f"note: {silent.error}", markup=False)
        if as_json:
            print(json.dumps(places.rows(found, asked), indent=2))
        else:
            out.print(places.versions_table(found, asked, out.width))


@app.command("get")
def get_coupling(
    rev: Annotated[
        str, typer.Argument(metavar="REV", help="A commit, branch, tag, experiment, or a hash.")
    ],
    name: Annotated[
        str | None,
        typer.Option(
            help="The coupling, such as rf1; needed if there are several.",
            autocompletion=complete.versions,
        ),
    ] = None,
    folder: Annotated[
        Path | None, typer.Option("-o", "--out", help="Folder; default: in .reflow/couplings.")
    ] = None,
    remote: Annotated[
        str | None, typer.Option(help="Ask this remote; default: the cache, then each remote.")
    ] = None,
    in_place: Annotated[
        bool, typer.Option("--in-place", help="Leave the shards in S3; they are read from there.")
    ] = False,
) -> None:
    """Fetch one version of a coupling and verify every byte; never overwrites anything."""
    from flows.library.fetch import fetch, point_to

    with one_line_errors():
        if in_place and folder is None:
            raise ReflowError("--in-place: name the folder with -o, such as -o couplings/rf1")
        if in_place and folder is not None:
            found = point_to(project(), rev, name=name, folder=folder, remote=remote)
        else:
            found = fetch(project(), rev, name=name, folder=folder, remote=remote)
    shown = os.path.relpath(found.folder)
    if in_place:
        said = f"{shown}: reads {found.version.coupling} of {found.version.commit} in"
        out.print(f"{said} {found.place}", markup=False, soft_wrap=True)
        return
    origin = "was there" if found.place == "there" else f"from {found.place}"
    out.print(
        f"{shown}: whole; {found.version.coupling} of {found.version.commit}, {origin}",
        markup=False,
        soft_wrap=True,
    )


def couple(
    key: Annotated[
        str,
        typer.Argument(
            metavar="COUPLING",
            help="The coupling, such as rf1.",
            autocompletion=complete.couplings,
        ),
    ],
    shards: Annotated[
        str | None,
        typer.Option(help="Sample only the shards a to b - 1, while other jobs sample others."),
    ] = None,
    finish: Annotated[
        bool,
        typer.Option(
            "--finalize", help="Check that all shards are there and let DVC record the stage."
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Sample a coupling by several jobs, some shards each; without options, list missing ones."""
    from dataclasses import asdict

    from flows.stage import shards as parts

    with one_line_errors():
        if shards is not None and finish:
            raise ReflowError("--shards and --finalize: one at a time; finalize when all are there")
        if as_json and (shards is not None or finish):
            raise ReflowError("--json is for the list of missing shards, without other options")
        root = project()
        if as_json:
            found = parts.state(root, key)
            print(json.dumps({"coupling": key, **asdict(found)}, indent=2))
            return
        if shards is not None:
            done = parts.sample(root, key, shards)
            said = f"shards {done.start}:{done.stop} are there"
        elif finish:
            said = _finalize(root, key)
        else:
            said = str(parts.state(root, key))
    out.print(f"couple@{key}: {said}", markup=False, soft_wrap=True)


def export(
    coupling: Annotated[
        str,
        typer.Argument(
            metavar="COUPLING",
            help="The coupling, such as rf1, or the folder of one.",
            autocompletion=complete.couplings,
        ),
    ],
    to: Annotated[Path, typer.Option("--to", help="The new folder.")],
    kind: Annotated[
        str,
        typer.Option(help="parquet, npy, npz, safetensors, pt, webdataset or datasets."),
    ] = "parquet",
) -> None:
    """Write the pairs of a coupling as other programs read them; `import:` reads them again."""
    from typing import Any, cast

    from flows.dag.graph import paths
    from flows.params.load import FILE, load
    from fmcore.coupling.manifest import MANIFEST
    from fmcore.outside.export import LAYOUTS
    from fmcore.outside.export import export as write

    with one_line_errors():
        if kind not in LAYOUTS:
            raise ReflowError(f"--kind: expected one of {', '.join(LAYOUTS)}, got {kind!r}")
        folder = Path(coupling)
        if not (folder / MANIFEST).is_file():
            root = project()
            if coupling not in (known := load(root / FILE).couplings):
                names = ", ".join(known) or "none"
                raise ReflowError(f"no coupling {coupling!r}; params.yaml has: {names}")
            folder = root / paths(root, f"couple@{coupling}")["out"]
        count = write(folder, to, cast(Any, kind))
    out.print(f"{to}: {count:,} pairs as {kind}", markup=False, soft_wrap=True)


def _finalize(root: Path, key: str) -> str:
    """Check that all shards are there, then run the stage, which only combines them."""
    from flows.dag import inputs
    from flows.run.repro import update_stage
    from flows.stage.guard import sweep
    from flows.stage.shards import state

    found = state(root, key)
    if found.missing:
        raise ReflowError(
            f"couple@{key}: {found}; sample those by `reflow couple {key} --shards a:b`, or all by"
            f" `reflow run couple@{key}`"
        )

    def tell(line: str) -> None:
        if not line.startswith(("error:", "ERROR:")):  # told once, by this command
            say(line)

    update_stage(root, inputs.STAGE, tell)
    done = update_stage(root, f"couple@{key}", tell)
    sweep(root)
    return done.state


def estimate(
    pairs: Annotated[
        int | None, typer.Option(min=1, help="Assume that every coupling has this many pairs.")
    ] = None,
    compute: Annotated[
        bool,
        typer.Option(
            "--compute", help="Compare compute settings: speed, change of the velocity, advice."
        ),
    ] = False,
    bound: Annotated[
        float | None,
        typer.Option(min=0, help="With --compute: the change up to which one is advised; 0.001."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Estimate the time and disk space of the chain on this machine, from a probe of seconds."""
    from dataclasses import asdict

    if compute:
        _compare_compute(pairs, bound, as_json)
        return

    from flows.cli.estimate import cost_table, duration
    from flows.cli.estimate import estimate as probe
    from flows.cli.load import Watch

    with one_line_errors():
        if bound is not None:
            raise ReflowError("--bound: says what --compute advises; add --compute")
        root = project()
        watch = Watch()
        with err.status("probing") as status:
            costs = probe(
                root, pairs=pairs, begin=lambda name: status.update(f"probing {name} ...")
            )
        _say_what_others_took(root, watch)
    if as_json:
        print(json.dumps([asdict(cost) for cost in costs], indent=2))
        return
    out.print(cost_table(costs))
    total = duration(sum(cost.hours for cost in costs))
    say(f"{total} with one worker; N workers divide the time of `couple` by N (docs/scaling.md)")


def _say_what_others_took(root: Path, watch: "Watch") -> None:
    from flows.cli.load import note, one_thread
    from flows.params.load import FILE, load

    compute = load(root / FILE).compute
    exact = one_thread(compute.start().type, compute.threads)
    if said := note(watch.load(), exact=exact):
        err.print(f"note: {said}", markup=False)


def _compare_compute(pairs: int | None, given: float | None, as_json: bool) -> None:
    """Measure the compute settings side by side, and print the line for params.yaml."""
    from rich.progress import Progress

    from flows.cli.load import Watch
    from flows.cli.variants import BOUND, compare, variant_table

    bound = BOUND if given is None else given
    with one_line_errors():
        root = project()
        watch = Watch()
        with Progress(console=err, transient=True) as bar:
            task = bar.add_task("")

            def begin(what: str, done: int, of: int) -> None:
                bar.update(task, description=what, completed=done, total=of)

            found = compare(root, pairs=pairs, begin=begin)
        _say_what_others_took(root, watch)
    if as_json:
        print(json.dumps(found.record(bound), indent=2))
        return
    out.print(variant_table(found))
    for line in found.advice(bound):
        say(line)
