"""What the Prefect UI shows of a chain: artifacts on the flow run, assets for outputs of stages.

All of it is best effort: a record that cannot be kept prints one line and never fails a run. Set
the environment (`environment.configure`) before importing this file.
"""

import base64
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from prefect.artifacts import (
    create_image_artifact,
    create_link_artifact,
    create_markdown_artifact,
    create_table_artifact,
)
from prefect.assets import Asset
from prefect.context import AssetContext
from prefect.states import Completed

from flows.compare import chains
from flows.dag import graph, lineage
from flows.dag.description import Description
from flows.project import links
from flows.run import about
from flows.run.schedule import ChainRun
from fmcore.verdict.comparison import Comparison
from fmcore.verdict.errors import short, with_error

LARGEST = 2_000_000
"""Largest picture to embed, in bytes, because the server's data base stores what is embedded."""

ASSETS = "dvc://reflow/"


def materialised(root: Path, stages: Mapping[str, graph.Stage], name: str) -> None:
    """Report to Prefect which couplings and models a stage made, and from which: as assets.

    Prefect's asset events carry the lineage of the chain; the metadata is DVC's hash.
    """
    stage = stages[name]
    made = {out for other in stages.values() for out in other.outs}
    folders = [out for out in stage.outs if not Path(out).suffix]
    if not folders:
        return
    entry = lineage.lock_entries(root)[name]
    AssetContext(
        direct_asset_dependencies={Asset(key=ASSETS + d) for d in stage.deps if d in made},
        downstream_assets={Asset(key=ASSETS + out) for out in folders},
        materialized_by="dvc",
        materialization_metadata={
            ASSETS + out: {"stage": name, "md5": entry.md5(out), "path": out} for out in folders
        },
    ).emit_events(Completed())


def rounds_so_far(chain_run: ChainRun) -> None:
    """Show the rounds as they are while the run goes on; the table at its end has all numbers."""
    rows = about.rounds_so_far(chain_run)
    create_table_artifact(key="rounds", table=rows, description="The rounds so far")


def show(root: Path, run: str) -> None:
    """Put the chain on the present flow run: rounds, pictures, couplings, the MLflow run `run`."""
    chain = chains.workspace_chain(root)
    described, found, read = chain.about, chain.found, chain.read
    create_table_artifact(key="rounds", table=_rounds(found), description=_shipping(found))
    create_markdown_artifact(
        key="couplings",
        markdown=_couplings(described, run),
        description="Every coupling of the chain",
    )
    folder = Path(described.files.comparison or "").parent
    _picture("fd-over-nfe", read, f"{folder}/fd_over_nfe.png", "Distance to real data")
    _picture("straightness", read, f"{folder}/straightness.png", "Straightness over t")
    for round_, files in described.files.rounds.items():
        key = f"samples-{round_.replace('_', '-')}"
        _picture(key, read, f"{files.pictures}/samples.png", f"Samples of {round_}")
    if link := _link(root, run):
        words = "Metrics, curves, pictures and models of the rounds"
        create_link_artifact(
            key="mlflow", link=link, link_text="The chain in MLflow", description=words
        )


def _rounds(found: Comparison) -> list[dict[str, str]]:
    """Return the rows of the table, the floor last."""
    table = found.table(("straightness_rel", "transport_cost"))
    distances = [f"{found.metric} at NFE {nfe}" for nfe in table.nfes]
    columns = ["round", "trained on", *distances, *table.metrics]
    rows = [[r.round, r.coupling, *r.cells] for r in table.rows]
    floor = [with_error(found.floor, found.floor_se) for _ in distances]
    rows.append(["floor", "real against real", *floor, *("" for _ in table.metrics)])
    return [dict(zip(columns, row, strict=True)) for row in rows]


def _shipping(found: Comparison) -> str:
    """Say what to ship and what comes next, as Markdown."""
    lines = [
        f"- **{_plain(use)}**: {_plain(c.round)} at NFE {c.nfe} ({_plain(found.metric)}"
        f" {with_error(c.distance, c.se)})"
        for use, c in found.ship.items()
    ]
    return "\n".join([*lines, *(f"- {_plain(line)}" for line in found.next)])


def _plain(text: object) -> str:
    """Return text that Markdown shows as it is, on one line.

    >>> _plain("a|b [x](y) <i>")
    'a&#124;b &#91;x&#93;(y) &#60;i&#62;'
    """
    words = " ".join(str(text).split())
    return re.sub(r"[&<>|`*\[\]\\~]", lambda found: f"&#{ord(found[0])};", words)


def _couplings(about: Description, run: str) -> str:
    """Return a table of the couplings with DVC's hashes, as Markdown."""
    head = ("coupling", "made by", "trains", "pairs", "solver gap (RMS)", "DVC hash")
    lines = [" | ".join(head), " | ".join("---" for _ in head)]
    for c in about.couplings:
        cells = (
            _plain(c.path), _plain(c.round or "prepare"), _plain(", ".join(c.trains)),
            c.pairs or "", short(c.solver_gap_rms, 4), _plain(c.md5),
        )  # fmt: skip
        lines.append(" | ".join(map(str, cells)))
    where = [f"Commit `{about.commit}`, chain `{about.key[:12]}`."]
    if run:
        where.append(f"MLflow run `{run}` in `{os.environ['MLFLOW_TRACKING_URI']}`.")
    return "\n".join([*(f"| {line} |" for line in lines), "", *where])


def _picture(key: str, read: Callable[[str], bytes | None], path: str, words: str) -> None:
    content = read(path)
    if content is None or len(content) > LARGEST:
        return
    data = "data:image/png;base64," + base64.b64encode(content).decode()
    create_image_artifact(image_url=data, key=key, description=f"{words} (`{path}`)")


def _link(root: Path, run: str) -> str | None:
    """Return the URL of an MLflow run; None if no MLflow server shows the data base."""
    address = os.environ.get("MLFLOW_TRACKING_URI", "")
    if not run or not address.startswith("http"):
        return None
    from flows.tracking.client import Tracker

    return f"{address.rstrip('/')}/{links.run(Tracker(root).experiment, run)}"
