"""The card of a coupling that is handed on: a README.md whose numbers are those of its metrics."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.compare.card import lineage_of, numbers
from flows.compare.chains import ComparedChain
from fmcore.coupling.write import About
from fmcore.verdict.gates import STAGES, Gates, absent, judge

CITATION = """```bibtex
@article{liu2022flow,
  title={Flow Straight and Fast: Learning to Generate and Transfer Data with Rectified Flow},
  author={Liu, Xingchao and Gong, Chengyue and Liu, Qiang},
  journal={arXiv preprint arXiv:2209.03003},
  year={2022}
}
```"""
SCRATCH = "scratch"
"""The round of pairs from outside whose model is not in the chain."""
NAMES = {
    "kind": "kind of the pairs",
    "model": "digest of its model",
    "probe": "solver chosen by",
    "nfe": "NFE",
    "guidance_within": "guidance between t",
    "guided": "guidance in the pairs",
    "conditions": "conditions and text encoder",
    "mix": "mixed from",
    "origin": "origin outside the chain",
    "numerics": "computed with",
    "convention": "time",
    "seed": "noise seed",
}
"""What a card calls the fields of a manifest; any other has its own name."""
UNSAID = {"pairs", "shape", "image", "schema_version", "audit_every"}
"""Fields that a card says elsewhere, or not at all."""
MEASURED = {
    "transport_cost": "mean squared length of target - source",
    "solver_gap_rms": "error of the solver on the audited pairs, root mean square",
    "solver_gap_rel": "the same over the data's standard deviation",
    "audited": "audited pairs",
    "target_rms": "root mean square of the data",
}
"""Metrics of a coupling that its card shows beside its gates, with what they are."""


@dataclass(frozen=True)
class Made:
    """How a chain made a coupling: the round, the metrics of its stage, the chain compared."""

    round: str
    metrics: Mapping[str, Any]
    chain: ComparedChain


def data_card(name: str, repo: str, about: About, made: Made | None, licence: str | None) -> str:
    """Return the card of the coupling `name`, whose manifest says `about`, for the hub's `repo`.

    Its front matter makes `datasets.load_dataset(repo)` find the Parquet files. Without the chain
    that made the coupling there are no gates and no numbers.
    """
    data = f" of {made.chain.about.data}" if made else ""
    head = [f"license: {licence}"] if licence else []
    head += ["tags:", "- rectified-flow", "- coupling", "configs:", "- config_name: default"]
    lines = ["---", *head, "  data_files: pairs/*.parquet", "---", ""]
    lines += [f"# {name}, {about.pairs:,} pairs of a rectified flow{data}", "", _what(about, made)]
    lines += [
        "",
        "## Use",
        "",
        *_use(repo, about),
        "",
        "## How it was made",
        "",
        *_made(about, made),
    ]
    lines += ["", "## Gates", ""]
    if made:
        lines += _gates(made)
        lines += ["", "## Numbers of the rounds", "", *numbers(made.chain, None)]
        lines += ["", "## Lineage", "", *lineage_of(made.chain)]
    else:
        lines += ["Not known here: the coupling was handed on without its chain."]
    lines += ["", "## Licence", ""]
    lines += [licence or "Not stated by whom handed it on; that of the data holds as well."]
    lines += ["", "## Citation", "", CITATION]
    return "\n".join(lines) + "\n"


def _what(about: About, made: Made | None) -> str:
    source = "samples of another data set" if about.source else "noise from N(0, I)"
    if about.kind == "imported":
        how = "They come from outside the chain and were checked when they were imported"
    else:
        by = f"the round {made.round}" if made else "a model"
        how = f"`target` is where the ODE of {by}, dx/dt = v(x, t), ends that starts at `source`"
    return (
        f"Each row is a pair: `target` (t = 0, data) and `source` (t = 1, {source}), numbers of the"
        f" shape {about.shape}, flat. {how}. `split` says which pairs are held out of every"
        " training."
    )


def _use(repo: str, about: About) -> list[str]:
    lines = [
        "In a chain (`reflow pull-hub` verifies every byte):", "", "```sh",
        f"reflow pull-hub {repo} --to pulled", "```", "", "```yaml", "couplings:",
        "  teacher: {round: scratch, import: {kind: reflow, path: pulled/pairs}}", "```", "",
        "With pandas:", "", "```python", "import numpy as np, pandas as pd",
        "from huggingface_hub import snapshot_download",
        f'frame = pd.read_parquet(snapshot_download("{repo}", repo_type="dataset") + "/pairs")',
        'frame = frame[frame["split"] == "train"]',
        f'target = np.stack(frame["target"]).reshape(-1, *{about.shape})', "```", "",
        "With datasets:", "", "```python", "import datasets",
        f'pairs = datasets.load_dataset("{repo}", split="train").with_format("numpy")',
        'pairs = pairs.filter(lambda row: row["split"] == "train")',
        f'target = pairs["target"][:64].reshape(-1, *{about.shape})', "```",
    ]  # fmt: skip
    if about.scale:
        scale = json.dumps(about.scale)
        lines += ["", f"Numbers are in units of the model; x * std + mean is the data's: {scale}."]
    if about.codec:
        lines += ["", "Samples are latents, which the codec named below decodes (`data.codec`)."]
    if not about.form.store.source:
        lines += ["", "`source` is not stored but drawn from seed and pair_id: `reflow export`."]
    return lines


def _made(about: About, made: Made | None) -> list[str]:
    rows: dict[str, object] = {"pairs": about.pairs, "shape of a sample": about.shape}
    if made:
        rows["data set"] = _without_folders(made.chain.about.settings.get("data"))
        rows |= {} if made.round == SCRATCH else {"made by the round": made.round}
    said = {"source": "N(0, I)", "guidance": "none", **about.model_dump(exclude_none=True)}
    for name, value in said.items():
        if name not in UNSAID and not (name == "seed" and about.kind == "imported"):
            rows[NAMES.get(name, name)] = _without_folders(value)
    return ["| | |", "|---|---|", *(f"| {name} | {_cell(value)} |" for name, value in rows.items())]


def _without_folders(value: object) -> object:
    """Return settings with the names of files alone: a card is read by strangers."""
    if isinstance(value, Mapping):
        return {key: _without_folders(inside) for key, inside in value.items()}
    if isinstance(value, str) and Path(value).expanduser().is_absolute():
        return Path(value).name
    return value


def _cell(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text.replace("|", "\\|")


def _gates(made: Made) -> list[str]:
    found = made.chain.about.settings.get("gates")
    bounds = Gates(**found) if isinstance(found, dict) else Gates()
    judged = [*judge(bounds, made.metrics), *absent("couple", made.metrics)]
    lines = ["| gate | value | state | what it says |", "|---|---|---|---|"]
    for one in (v for v in judged if v.gate in STAGES["couple"]):
        value = "" if one.value is None else f"{one.value:.6g}"
        lines += [f"| {one.gate} | {value} | {one.state} | {_cell(one.says)} |"]
    lines += ["", "| measured | value | |", "|---|---|---|"]
    known = [(name, what) for name, what in MEASURED.items() if name in made.metrics]
    return [*lines, *(f"| {name} | {made.metrics[name]:.6g} | {what} |" for name, what in known)]
