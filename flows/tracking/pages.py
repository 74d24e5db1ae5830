"""What people read in MLflow: the view of a chain with its one chart, links, descriptions."""

import json
from collections.abc import Mapping
from typing import Any

from flows.dag.chain import Chain, Round
from flows.dag.lock import Entry
from flows.project import links
from flows.tracking.shown import DISTANCE, FLOOR, GAP
from fmcore.own import named
from fmcore.verdict.comparison import Comparison

LONGEST = 8000
"""Longest value of a tag, in characters."""

ABOUT = {
    "mlflow.experimentKind": "custom_model_development",
    "mlflow.note.content": (
        "A run per chain, a child run per round. `distance/`: distance to the data over NFE (step"
        " = NFE), one curve a round, and the floor: real against real data. `score/`: what to sort"
        " by. `measures/`: other measures over NFE. `over_t/gap`: 0 where paths are straight (t in"
        " thousandths). `round/` on a chain: scores over the rounds. All other numbers: `receipts/`"
        " among the artifacts."
    ),
}

GIVEN = """\
noise = np.random.default_rng(0).normal(size=({sizes})).astype("float32")
samples = model.predict(noise, params={{"nfe": 1}})"""
"""Lines of Python that give a model noise."""
DRAWN = 'samples = model.predict([], params={"seed": 0, "count": 16, "nfe": 1})'
"""A line of Python that lets a model draw its noise."""
TRUSTING = """\
folder = mlflow.artifacts.download_artifacts("{uri}")
sys.path.insert(0, f"{{folder}}/code")
from fmcore import own

own.trust(Path("."), {classes})
model = mlflow.pyfunc.load_model(folder)"""
"""Lines of Python that load a model that needs classes of the user's own."""
PARAMS = (
    "`params`: `nfe`, the Euler steps; `seed` and `count` draw the noise, the input is then"
    " `[]`; `class` (a name) or `label` (a number); `guidance`; `weights`: ema, raw, or the"
    " length of a power average."
)


def view_of(whole: Chain) -> str:
    """Return the name of the view of a chain."""
    return whole.key[:16]


def view(whole: Chain, found: Comparison) -> str:
    """Return the state of MLflow's page of runs that shows the rounds of a chain, and their chart.

    It is not ordered by time: MLflow would then fetch the chain's run too, and fold the rounds.
    """
    positive = min([found.floor, *(d for r in found.rounds for d in r.distances.values())]) > 0
    names = [f"{DISTANCE}{found.metric}", FLOOR]
    state = {
        "searchFilter": f"tags.reflow.chain = '{whole.key}' and tags.reflow.kind = 'round'",
        "orderByKey": "tags.`reflow.round`",
        "orderByAsc": True,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "runsHiddenMode": "FIRST_20_RUNS",
        "compareRunCharts": [
            _chart("distance", names, x="log", y="log" if positive else "linear"),
            _chart("more", [GAP]),
            _chart("more", ["train/loss"]),
        ],
        "compareRunSections": [
            _section("distance", "Distance to the data over NFE; dashed: the floor", 1, 420),
            _section("more", "Straightness: gap over t in thousandths; training loss", 2, 300),
        ],
        "isAccordionReordered": True,
        "viewMaximized": True,
    }
    return json.dumps(state)


def _section(name: str, title: str, columns: int, height: int) -> dict[str, object]:
    return {
        "uuid": name, "name": title, "display": True, "isReordered": True, "deleted": False,
        "isGenerated": False, "columns": columns, "cardHeight": height,
    }  # fmt: skip


def _chart(
    section: str, metrics: list[str], x: str = "linear", y: str = "linear"
) -> dict[str, object]:
    return {
        "type": "LINE", "uuid": metrics[0], "metricSectionId": section, "displayName": metrics[0],
        "metricKey": metrics[0], "selectedMetricKeys": metrics, "deleted": False,
        "isGenerated": False, "runsCountToCompare": 20, "lineSmoothness": 0, "xAxisScaleType": x,
        "scaleType": y, "xAxisKey": "step", "selectedXAxisMetricKey": "",
        "displayPoints": True, "yAxisKey": "metric", "yAxisExpressions": [], "range": {},
        "ignoreOutliers": False, "useGlobalXaxisKey": False, "useGlobalLineSmoothing": False,
    }  # fmt: skip


def chain_note(experiment: str, whole: Chain, run: str, text: str) -> str:
    """Return the description of a chain's run: its chart, and rounds.md (`text`)."""
    table, _, said = text.partition("\n\n")
    lines = [
        f"[The rounds in one chart]({links.rounds(experiment, view_of(whole))})",
        said.strip(),
        f"![Distance over NFE]({links.artifact(run, 'comparison/fd_over_nfe.png')})",
        table,
    ]
    return "\n\n".join(lines)[:LONGEST]


def round_note(experiment: str, whole: Chain, round_: Round, planned: Entry | None) -> str:
    """Return the description of a round's run."""
    link = links.rounds(experiment, view_of(whole))
    coupling = planned.setting(f"rounds.{round_.name}", "coupling") if planned else None
    trained = f", trained on the coupling `{coupling}`" if coupling else ""
    return (
        f"Round `{round_.name}` of a chain on {whole.name}{trained}."
        f" [All its rounds in one chart]({link}). All its numbers: `receipts/` among the artifacts."
    )


def loading(uri: str, config: Mapping[str, Any] | None = None) -> str:
    """Return Markdown that says how to load a model, for its page.

    With the config of a model it gives noise of its shape; without, as for a registered model, it
    lets the model draw some.
    """
    about = config or {}
    own = named([about.get("network", {}), about.get("interpolant", {})])
    head, load, call = "import mlflow", f'model = mlflow.pyfunc.load_model("{uri}")', DRAWN
    if config:
        sizes = ", ".join(map(str, (16, *config["shape"])))
        head, call = "import mlflow, numpy as np", GIVEN.format(sizes=sizes)
    if own:
        head = f"import sys\nfrom pathlib import Path\n\n{head}"
        load = TRUSTING.format(uri=uri, classes=json.dumps(sorted(own)))
    code = f"{head}\n\n{load}\n{call}"
    return f"{_gives(config)}\n\n```python\n{code}\n```\n\n{_trusts(own)}{PARAMS}"


def _gives(config: Mapping[str, Any] | None) -> str:
    """Return what a model gives for noise: samples, or latents where its data have a codec."""
    if config is None:
        return (
            "Noise to samples in the data's own units, to latents where the data have a codec. A"
            " network of a class of your own needs further lines: the page of the version has them."
        )
    if not config.get("codec"):
        return "Noise to samples, in the data's own units:"
    whole = " x ".join(map(str, config["codec"]["shape"]))
    return (
        "Noise to latents, in the units of the codec (`data.codec`), which this model does not"
        f" contain and which decodes them to samples of {whole}; `reflow sample` and a folder of"
        " `reflow ship --to` give decoded samples:"
    )


def _trusts(own: set[str]) -> str:
    """Return a paragraph on classes of the user's own that a model needs; "" for none."""
    if not own:
        return ""
    classes = ", ".join(f"`{path}`" for path in sorted(own))
    return (
        f"It needs {classes}, whose code the model does not contain: replace `.` by the folder"
        " with that module. `trust` lets loading run this code, so read it first; without that"
        " line the model is refused.\n\n"
    )


def tags_of(whole: Chain) -> dict[str, str]:
    """Return the tags that say what a chain is."""
    seed = whole.settings.get("seed")
    return {"reflow.data": whole.name, **({} if seed is None else {"reflow.seed": str(seed)})}
