"""The card of a round that is handed on: a README.md whose numbers are those of the comparison."""

import json
from collections.abc import Sequence
from pathlib import Path

from flows.compare.chains import ComparedChain
from fmcore.settings import ReflowError
from fmcore.ship.schedule import is_even
from fmcore.solve.solver import Solver
from fmcore.verdict.comparison import RoundResult
from fmcore.verdict.errors import with_error


def card(
    chain: ComparedChain,
    round_: str,
    solver: Solver | None,
    *,
    use: Sequence[str],
    licence: str | None,
    tags: Sequence[str] = (),
) -> str:
    """Return the card of a round, sampled by Euler on a grid: what it is, how good, from what.

    Without `solver` the number of steps is open, as it is for a model's own files.
    `use` are blocks of Markdown that say how it is loaded; the front matter is that of a model hub.
    Raises ReflowError if the chain has no such round.
    """
    found = chain.found
    known = {r.name: r for r in found.rounds}
    if round_ not in known:
        raise ReflowError(f"no round {round_!r} in the comparison; it has: {', '.join(known)}")
    said = [f"license: {licence}"] if licence else []
    said += ["tags:", *(f"- {tag}" for tag in ("rectified-flow", *tags))]
    lines = ["---", *said, "---", "", f"# {round_}, a rectified flow of {chain.about.data}", ""]
    lines += [
        _what(known[round_], chain, solver),
        "",
        "## Use",
        "",
        "\n".join(use).strip(),
        "",
        "## Numbers",
        "",
    ]
    lines += numbers(chain, solver)
    lines += ["", "## Gates", ""]
    if not found.gates:
        lines += ["None was measured."]
    elif not found.unhappy:
        lines += ["All gates are ok."]
    lines += [f"- {j.text}" for j in found.unhappy]
    lines += ["", "## Lineage", "", *lineage_of(chain), "", "## Licence", ""]
    lines += [licence or "None was stated when it was shipped; that of the data holds as well."]
    return "\n".join(lines) + "\n"


def _what(own: RoundResult, chain: ComparedChain, solver: Solver | None) -> str:
    made = f"the coupling `{own.coupling}`"
    made += (
        f", which {own.parent} generated" if own.parent else ", data and source paired at random"
    )
    steps = ""
    if solver:
        steps = f", here in {solver.steps} step{'' if solver.steps == 1 else 's'} of Euler"
        if not is_even(solver):
            times = ", ".join(f"{t:.4g}" for t in solver.grid(1.0, 0.0).tolist())
            steps += f" at the times {times}"
    kind = "A student of" if own.student else "A velocity field trained on"
    return (
        f"{kind} {made}; it carries the source at t = 1 to data at t = 0 by dx/dt = v(x, t)"
        f"{steps}. Commit {_short(chain.about.commit)} of the project that trained it."
    )


def _short(commit: str) -> str:
    """Return the first digits of a commit, and whether there were edits beside it."""
    number, edits, _ = commit.partition("+edits")
    return number[:12] + (" with edits" if edits else "")


def numbers(chain: ComparedChain, solver: Solver | None) -> list[str]:
    """Return the table of distances of all rounds, with what they are and are not."""
    found = chain.found
    table = found.table(["straightness_rel", "transport_cost"])
    heads = ["round", *(f"NFE {n}" for n in table.nfes), *table.metrics]
    lines = [
        f"`{found.metric}`, the smaller the better; real against real data:"
        f" {with_error(found.floor, found.floor_se)}. Each number has its standard error.",
        "",
        "| " + " | ".join(heads) + " |",
        "|" + "---|" * len(heads),
        *(f"| {row.round} | " + " | ".join(row.cells) + " |" for row in table.rows),
        "",
        f"Measured by the yardstick {found.fingerprint}: distances of two yardsticks do not"
        " compare.",
    ]
    if solver and not is_even(solver):
        lines += ["", "They were measured on even steps; on the grid that is shipped they differ."]
    elif solver and solver.steps not in found.nfes:
        measured = ", ".join(map(str, found.nfes))
        said = f"NFE {solver.steps}, which is shipped, was not measured; these were: {measured}."
        lines += ["", said]
    return lines


def lineage_of(chain: ComparedChain) -> list[str]:
    """Return the table of the couplings of a chain: by whom, for whom, with which hash."""
    about = chain.about
    lines = [f"Data: {about.data}. Seed: {about.seed}. Chain: {about.key}.", ""]
    lines += ["| coupling | made by | trains | pairs | solver | md5 |", "|---|---|---|---|---|---|"]
    for one in about.couplings:
        solver = json.dumps(one.solver) if one.solver else ""
        cells = (one.coupling, one.round or "data", ", ".join(one.trains), str(one.pairs or ""))
        lines.append("| " + " | ".join((*cells, solver, one.md5)) + " |")
    return lines


def write(text: str, folder: Path) -> None:
    """Write the card to README.md of a folder."""
    (folder / "README.md").write_text(text)
