"""The commands that make and change a project: `reflow init`, `reflow new`, `reflow upgrade`."""

import os
import shlex
from pathlib import Path
from typing import Annotated

import typer

from flows.cli.console import err, one_line_errors, out, plan_table, project, say
from flows.project.environment import check_own_code, configure, find_root


def init(
    folder: Annotated[Path, typer.Argument(help="The folder to make, such as my-flows.")],
    data: Annotated[
        str, typer.Option("--from", help="Its data set: digits, eight_gaussians, images, ...")
    ] = "digits",
) -> None:
    """Make a project: parameters, stages, a git repository with a first commit."""
    from flows.dag import inputs
    from flows.start.init import init as make

    with one_line_errors():
        made = make(folder, data)
        for note in made.notes:
            say(note)
        commit = f", commit {made.commit}" if made.commit else ""
        say(f"{folder}: a project with the data set {data}{commit}")
        there = f"next: cd {shlex.quote(str(folder))}"
        if absent := inputs.missing(folder):
            say(f"note: not there yet, and `reflow run` needs it: {', '.join(absent.values())}")
            say(f"{there}; put the data there, or: reflow new NAME --images FOLDER")
        else:
            say(f"{there} && reflow run")


def new(
    name: Annotated[str, typer.Argument(help="The name of the parameter file, such as cats.")],
    images: Annotated[
        Path | None, typer.Option(help="A folder of images; its sub-folders are classes.")
    ] = None,
    array: Annotated[Path | None, typer.Option(help="An array or table: .npy, .npz, .csv.")] = None,
    parquet: Annotated[
        Path | None, typer.Option(help="A table, of a column of lists or columns of numbers.")
    ] = None,
    label: Annotated[
        str | None, typer.Option(help="The column, or array of a .npz file, of the classes.")
    ] = None,
    layout: Annotated[
        str | None, typer.Option(help="What the axes of an array mean: vectors, nhw, nhwc, nchw.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace params/NAME.yaml.")] = False,
    estimate: Annotated[
        bool, typer.Option("--estimate/--no-estimate", help="Probe how long the chain will take.")
    ] = True,
) -> None:
    """Write params/NAME.yaml for data of your own, with a reason for each choice."""
    with one_line_errors():
        root = find_root(Path.cwd())
        check_own_code(root)
        configure(root)
        import torch

        from flows.start.new import Source, printable
        from flows.start.new import new as write

        gpu = torch.cuda.is_available()
        source = Source(images, array, parquet, label, layout)
        file, seen = write(root, name, source, gpu=gpu, force=force)
        for line in seen.lines:
            say(printable(line))
        shown = shlex.quote(os.path.relpath(file))
        say(f"{shown}: written; each choice has its reason there")
        if estimate:
            _estimate(root, file)
        say(f"next: reflow use {shown} && reflow run")


def upgrade(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would change; all files stay as they are.")
    ] = False,
) -> None:
    """Move the project to the installed version: its files, unless you edited them."""
    with one_line_errors():
        root = project()
        from flows.start.upgrade import carry_out, planned, prepared

        found = prepared(root)
        for name in found.edited:
            say(f"{name}: edited, so it stays as it is; that of {found.after} may differ")
        if found.nothing:
            say(f"the project has the files of {found.after} already")
            return
        for name in [*found.rewritten, *found.removed]:
            say(f"{name}: {'removed' if name in found.removed else 'rewritten'}")
        stages = [item for item in planned(root, found) if item.state != "unchanged"]
        out.print(plan_table(stages)) if stages else say("no stage will run again")
        if dry_run:
            say(f"{found.before} -> {found.after}: nothing was changed (--dry-run)")
            return
        carry_out(root, found)
        say(f"{found.before} -> {found.after}; see it by git diff, keep it by git commit -a")


def _estimate(root: Path, file: Path) -> None:
    """Print how long the chain of a parameter file would take here."""
    from flows.cli.estimate import cost_table, duration
    from flows.cli.estimate import estimate as probe
    from flows.params.load import load
    from flows.start.new import absolute

    with err.status("probing") as status:
        costs = probe(
            root,
            seconds=0.3,
            begin=lambda name: status.update(f"probing {name} ..."),
            params=absolute(load(file, root), root),
        )
    out.print(cost_table(costs))
    say(f"about {duration(sum(cost.hours for cost in costs))} here, measuring aside")
