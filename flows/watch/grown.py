"""The page of a run: the report of what there is so far, with the run on top."""

from collections.abc import Mapping
from pathlib import Path

from flows.compare.chains import WORKSPACE, ComparedChain, commit_of
from flows.compare.charts import HELD_OUT, Axes, Line, chart
from flows.compare.groups import grouped
from flows.compare.page import Live, page
from flows.compare.samples import drawn
from flows.dag import graph, lineage
from flows.dag.description import describe
from flows.dag.identity import whole_chain
from flows.dag.outputs.content import reader
from flows.dag.receipts import read_comparison, spent
from flows.params.load import FILE, load
from flows.project.environment import configure
from flows.stage.verbs import round_names
from flows.watch.state import Seen, Watched
from flows.watch.terminal import last_preview, line_of, text_of
from fmcore.compare import compared
from fmcore.settings import ReflowError
from fmcore.verdict.drawing import Look, looks

EVERY = 5
"""Seconds after which a browser loads the page of a running run again."""


class Grown:
    """Writes the page; the chain is read again only when dvc.lock or params.yaml has changed."""

    def __init__(self, root: Path) -> None:
        configure(root)
        self.root = root
        self.known: tuple[object, list[ComparedChain]] = (None, [])

    def html(self, seen: Seen) -> str:
        """Return the page; that of a run that is up to date is the report itself."""
        if seen.state in ("done", "none") and (chains := self._chains()):
            return page(grouped(chains))
        if seen.state == "none":
            raise ReflowError("no run yet, so there is no page; `reflow run` starts one")
        return page(grouped(self._chains()), _live(seen, self._looks(seen)))

    def _looks(self, seen: Seen) -> dict[str, Look]:
        """Return how rounds are drawn: those of params.yaml as ever, then what else is trained."""
        try:
            known = {name: r.replicate_of for name, r in load(self.root / FILE).rounds.items()}
        except ReflowError:  # it is being edited
            known = {}
        return looks(known | {s.round_: None for s in _trained(seen) if s.round_ not in known})

    def _chains(self) -> list[ComparedChain]:
        now = [_stamp(self.root / name) for name in ("dvc.lock", FILE)]
        if self.known[0] != now:
            try:
                self.known = (now, so_far(self.root))
            except (ReflowError, OSError):  # a stage is writing; the next look sees it whole
                return self.known[1]
        return self.known[1]


def _stamp(path: Path) -> tuple[int, int]:
    try:
        return path.stat().st_mtime_ns, path.stat().st_size
    except OSError:
        return 0, 0


def so_far(root: Path) -> list[ComparedChain]:
    """Return the chain of the workspace with the rounds that are measured; none without any.

    Results of other settings, which dvc.lock still has from an earlier run, are not among them.
    """
    whole = whole_chain(root, lineage.entries(root), lineage.lock_entries(root))
    measured = {r.name for r in whole.rounds if r.evaluate}
    if not measured:
        return []
    read = reader(root)
    if whole.compare is not None:
        found = read_comparison(root, whole.compare)
    else:
        params, paths = load(root / FILE), graph.paths(root, "compare")
        rounds = [r for r in round_names(params) if r.name in measured]
        places = {name: paths[name] for name in ("metrics", "fd", "yardstick")}
        found = compared(rounds, params.gates, **places)
    took = {r.name: spent(root, r) for r in whole.rounds if r.name in measured}
    return [ComparedChain(WORKSPACE, describe(whole, read, commit_of(root)), found, read, took)]


def _trained(seen: Seen) -> list[Watched]:
    return [stage for stage in seen.stages if stage.name.startswith("train@")]


def _live(seen: Seen, drawn_as: Mapping[str, Look]) -> Live:
    rows = [(s.name, str(s.state), s.share, text_of(s)) for s in seen.stages]
    gates = [
        (state, f"{state}: {stage.name}: {says}")
        for stage in seen.stages
        for state, says in stage.gates
        if state in ("warn", "fail")
    ]
    return Live(
        seen.title, line_of(seen), seen.state == "running", rows, gates,
        _losses(seen, drawn_as), _samples(seen, drawn_as), EVERY,
    )  # fmt: skip


def _losses(seen: Seen, drawn_as: Mapping[str, Look]) -> str:
    lines = []
    for stage in _trained(seen):
        for column in ("loss", HELD_OUT):
            if points := stage.curves.get(column):
                x, y = zip(*points, strict=True)
                own, held_out = drawn_as[stage.round_], column == HELD_OUT
                lines.append(Line.of(stage.round_, x, y, own, held_out=held_out))
    return chart(lines, Axes("step", "loss")) if lines else ""


def _samples(seen: Seen, drawn_as: Mapping[str, Look]) -> list[tuple[str, list[tuple[str, str]]]]:
    found = last_preview(seen)
    if found is None:
        return []
    stage, shown = found
    title = f"Samples of {stage.round_} at step {shown.step}, each time from the same noise"
    return [(title, list(drawn(shown, drawn_as[stage.round_].colour).items()))]
