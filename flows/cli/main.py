"""The `reflow` command; each of its subcommands calls one function of `flows`."""

import json
import sys
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated

import typer

from flows.cli import complete, hub, library, projects, servers, version
from flows.cli.console import AsJson, err, one_line_errors, out, plan_table, project, say
from flows.cli.demo import demo
from flows.cli.manual import docs
from flows.cli.replicates import replicate, write_replicates
from flows.cli.sample import sample
from flows.cli.settings import settings
from flows.cli.ship import ship
from flows.cli.verify import verify
from flows.cli.watch import watch
from flows.project.environment import check_own_code, configure, find_root

app = typer.Typer(
    help=(
        "Reflow chains: prepare data, train a rectified flow, sample its coupling, train the next"
        " round on it, measure and compare the rounds. Start with `reflow run`."
    ),
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    epilog="Settings and rounds: params.yaml. The stages: dvc.yaml. Records: MLflow, by `publish`.",
)
app.callback()(version.common)
app.add_typer(library.app, name="couplings")
Targets = Annotated[
    list[str] | None,
    typer.Argument(
        help="Stages to bring up to date; default: all of dvc.yaml.",
        autocompletion=complete.stages,
    ),
]


@app.command()
def run(
    targets: Targets = None,
    prefect: Annotated[
        bool, typer.Option("--prefect/--no-prefect", help="Run as a Prefect flow, or in threads.")
    ] = True,
    mlflow: Annotated[
        bool,
        typer.Option("--mlflow/--no-mlflow", help="Record live curves and publish at the end."),
    ] = True,
    executor: Annotated[
        str | None,
        typer.Option(
            help="Where samples are computed: processes:4, ray, dask, ray://..., tcp://..."
        ),
    ] = None,
    pull: Annotated[
        bool, typer.Option("--pull", help="Restore stages that ran before from the DVC remote.")
    ] = False,
    seeds: Annotated[
        int | None,
        typer.Option(help="First write this many replicates of every round into params.yaml."),
    ] = None,
) -> None:
    """Bring the chain up to date: each stage of dvc.yaml once, at the same time where possible."""
    from flows.project.executor import choose
    from flows.run.start import start

    with one_line_errors():
        choose(executor)
        if seeds is not None:
            write_replicates(seeds, [])
        ok = start(project(), targets, prefect=prefect, mlflow=mlflow, pull=pull, out=out)
    raise typer.Exit(0 if ok else 1)


@app.command()
def plan(as_json: AsJson = False) -> None:
    """Show which stages will run and why, including those downstream. Runs nothing."""
    from dataclasses import asdict

    from flows.dag import absent, plan

    with one_line_errors():
        planned = plan.plan(project())
        if as_json:
            print(json.dumps([asdict(p) for p in planned], indent=2))
        else:
            out.print(plan_table(planned))
            for line in absent.lines(planned):
                say(f"missing: {line}")


@app.command()
def publish(as_json: AsJson = False) -> None:
    """Bring MLflow up to date with dvc.lock and the receipts; a second call does nothing."""
    from dataclasses import asdict

    from flows.tracking.publish import publish as publish_runs

    with one_line_errors():
        done = publish_runs(project(), err.print if as_json else say)
    if as_json:
        print(json.dumps(asdict(done), indent=2))
    else:
        out.print(
            f"MLflow: {len(done.logged)} logged, {len(done.unchanged)} there already,"
            f" {len(done.skipped)} not published (chain run {done.parent})"
        )
    raise typer.Exit(1 if done.skipped else 0)


@app.command()
def push() -> None:
    """Send the results of all runs to the default DVC remote, for `reflow run --pull` elsewhere."""
    from flows.dag.outputs import store

    with one_line_errors():
        root = project()
        remote = store.default_remote(root)
        sent, runs = store.push_runs(root, remote)
    out.print(f"remote {remote}: {sent} objects sent; it has {runs} stages that ran", markup=False)


@app.command()
def compare(
    rev: Annotated[
        list[str] | None,
        typer.Option(help="A chain of another commit, branch or tag; may be repeated."),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Every chain that MLflow holds.")] = False,
    as_json: AsJson = False,
    full: Annotated[bool, typer.Option("--full", help="Every NFE, not the few numbers.")] = False,
    csv: Annotated[Path | None, typer.Option(help="Also write the numbers to this file.")] = None,
    html: Annotated[
        Path | None, typer.Option(help="Also write a report, one page with its pictures.")
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(
            help="The round that replicates are tested against, such as rf2.",
            autocompletion=complete.rounds,
        ),
    ] = None,
) -> None:
    """Show rounds side by side: of this chain, of other commits, or of all chains in MLflow."""
    from flows.compare.show import show

    with one_line_errors():
        show(
            project(), rev or [], published=every, csv=csv, html=html, baseline=baseline, out=out,
            form="json" if as_json else "full" if full else "short",
        )  # fmt: skip


@app.command()
def use(
    file: Annotated[
        Path,
        typer.Argument(
            help="A parameter file, or the name of one in params/ or a shipped one.",
            autocompletion=complete.parameter_files,
        ),
    ],
    force: Annotated[
        bool, typer.Option("--force", help="Overwrite a params.yaml that git does not have.")
    ] = False,
    whole: Annotated[
        bool, typer.Option("--whole", help="Keep the full size on a machine without a GPU.")
    ] = False,
) -> None:
    """Make FILE the params.yaml of the project, after checking it; git keeps the old one."""
    from flows.dag.inputs import missing
    from flows.params.use import use_params
    from flows.start.templates import named, parameter_files

    with one_line_errors():
        root = find_root(Path.cwd())
        check_own_code(root)
        found, shipped = named(file, root), parameter_files().values()
        said = use_params(root, found, force=force, whole=whole, shipped=shipped)
        absent = [f"{path} ({place})" for place, path in missing(root).items()]
    if said:
        out.print(f"{said}; --whole keeps its size", markup=False, soft_wrap=True)
    if absent:
        say(f"note: not there yet, and `reflow run` needs it: {', '.join(absent)}")
    out.print(f"params.yaml is now {file}; `reflow plan` says what that changes", markup=False)


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Check the installation and the project: what is installed, what is wrong, how to fix it."""
    from flows.cli.doctor import show

    with one_line_errors():
        root = find_root(Path.cwd())
        configure(root)
        wrong = show(root, as_json=as_json)
    raise typer.Exit(2 if wrong else 0)


app.command()(demo)
app.command()(sample)
app.command()(projects.init)
app.command()(projects.new)
app.command()(projects.upgrade)
app.command()(replicate)
app.command()(library.couple)
app.command("export")(library.export)
app.command()(library.estimate)
app.command()(settings)
app.command()(docs)
app.command()(ship)
app.command("push-hub")(hub.push_hub)
app.command("pull-hub")(hub.pull_hub)
app.command()(verify)
app.command()(watch)
app.command()(servers.ui)
app.command()(servers.env)
app.command()(servers.deploy)


def main() -> None:
    """Entry point of the `reflow` command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal may know ASCII only
    app()


if __name__ == "__main__":
    main()
