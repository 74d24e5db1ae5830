"""The comparison of the rounds of a chain: what `compare` writes to rounds.json, as one type.

Tables, csv, charts, MLflow, Prefect and the page all read it.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field

from pydantic import TypeAdapter, ValidationError

from fmcore.checked import MEND, opened, sealed
from fmcore.expected import mistake
from fmcore.settings import ReflowError
from fmcore.verdict import keys
from fmcore.verdict.drawing import Look, looks
from fmcore.verdict.errors import standard_error, with_error
from fmcore.verdict.gates import Verdict
from fmcore.verdict.replicates import Replicates

FILE = "rounds.json"
"""The name of the comparison in the folder that `compare` writes."""

FEW = 4
"""`few_step` is the NFE nearest to this one."""

Number = int | float
"""A number as the file has it, so that writing it again gives the same bytes."""


@dataclass(frozen=True)
class RoundResult:
    """The metrics of a round, and the round that made its coupling (`parent`), if one did.

    `distances` are by NFE, `cuts` are the values of each distance on every cut of the yardstick,
    whose mean it is, and `metrics` holds every metric that belongs to no NFE, with its standard
    error as `<name>_se`. `samplers` are NFE, distance and its error of every sampler, Euler and the
    others, by name. A `student` is trained for a number of steps, not for a velocity. A `replicate`
    repeats the round `replicate_of` under that number.
    """

    name: str
    coupling: str
    parent: str | None
    student: bool
    distances: dict[int, Number]
    metrics: dict[str, Number]
    cuts: dict[int, list[Number]] = field(default_factory=dict)
    replicate_of: str | None = None
    replicate: int | None = None
    samplers: dict[str, dict[str, Number]] = field(default_factory=dict)

    def at(self, nfe: int) -> Number | None:
        """Return the distance at an NFE; None where it was not measured."""
        return self.distances.get(nfe)

    def error(self, nfe: int) -> float | None:
        """Return the standard error of the distance at an NFE; None where there is no error."""
        return standard_error(self.cuts.get(nfe, []))

    @property
    def most(self) -> int:
        """The largest NFE."""
        return max(self.distances)

    def keyed(self, metric: str) -> dict[str, float]:
        """Return all numbers by their keys; the distance `metric` by NFE comes first."""
        distances = {keys.at_nfe(metric, nfe): float(d) for nfe, d in self.distances.items()}
        errors = {
            keys.error(keys.at_nfe(metric, nfe)): error
            for nfe in self.distances
            if (error := self.error(nfe)) is not None
        }
        plain = {name: float(value) for name, value in self.metrics.items()}
        return {**distances, **errors, **plain}


@dataclass(frozen=True)
class Choice:
    """A round, an NFE, the distance there and its standard error; None where there is no error."""

    round: str
    nfe: int
    distance: Number
    se: Number | None = None


@dataclass(frozen=True)
class Judged:
    """The verdict of a gate on a stage."""

    stage: str
    verdict: Verdict

    @property
    def text(self) -> str:
        """One line: the state, the stage and the message of the gate."""
        return f"{self.verdict.state}: {self.stage}: {self.verdict.says}"


@dataclass(frozen=True)
class Row:
    """A row of a table: a round, its distances at the table's NFE, its metrics; None is a gap.

    `errors` are the standard errors of all numbers, from left to right; None where there is none.
    """

    round: str
    coupling: str
    distances: list[Number | None]
    metrics: list[Number | None]
    errors: list[Number | None]

    @property
    def values(self) -> list[Number | None]:
        """All numbers, from left to right."""
        return [*self.distances, *self.metrics]

    @property
    def cells(self) -> list[str]:
        """All numbers as people read them: `12.7 ± 0.4`."""
        return [with_error(v, e) for v, e in zip(self.values, self.errors, strict=True)]


@dataclass(frozen=True)
class Table:
    """A table of rounds: a column for each NFE, then one for each metric that a round has."""

    nfes: list[int]
    metrics: list[str]
    rows: list[Row]


@dataclass(frozen=True)
class Comparison:
    """The rounds of a chain side by side, what to ship for which use, and what to do next.

    `metric` is the distance that rounds are compared by, `floor` its value for real against real
    data with the standard error `floor_se`, `fingerprint` names the yardstick: distances of two
    yardsticks do not compare. `resolves` is the smallest difference of two rounds near the floor
    that their paired test sees. `yardstick` is a hash of the whole yardstick, its reference
    included: chains average over equal ones only. `replicates` are the rounds that were trained
    several times.
    """

    metric: str
    fingerprint: str
    floor: Number
    rounds: list[RoundResult]
    ship: dict[str, Choice]
    next: list[str]
    gates: list[Judged]
    floor_se: Number | None = None
    resolves: Number | None = None
    yardstick: str = ""
    replicates: list[Replicates] = field(default_factory=list)

    @property
    def nfes(self) -> list[int]:
        """Every NFE at which some round was measured, in order."""
        return sorted({nfe for r in self.rounds for nfe in r.distances})

    @property
    def looks(self) -> dict[str, Look]:
        """How each round is drawn, by the order of the chain; replicates as theirs."""
        return looks({r.name: r.replicate_of if r.replicate else None for r in self.rounds})

    @property
    def colours(self) -> dict[str, str]:
        """The colour of each round."""
        return {name: own.colour for name, own in self.looks.items()}

    def least(self, nfe: int) -> Number:
        """Return the least distance of all rounds at an NFE."""
        return min(r.distances[nfe] for r in self.rounds if nfe in r.distances)

    @property
    def unhappy(self) -> list[Judged]:
        """The gates whose state is not ok."""
        return [judged for judged in self.gates if judged.verdict.state != "ok"]

    def table(self, metrics: Sequence[str]) -> Table:
        """Return the table of the rounds, with those of `metrics` that a round has."""
        nfes = self.nfes
        shown = [m for m in metrics if any(m in r.metrics for r in self.rounds)]
        rows = [
            Row(
                r.name,
                r.coupling,
                [r.at(nfe) for nfe in nfes],
                [r.metrics.get(name) for name in shown],
                [*map(r.error, nfes), *(r.metrics.get(keys.error(name)) for name in shown)],
            )
            for r in self.rounds
        ]
        return Table(nfes, shown, rows)

    def as_dict(self) -> dict[str, object]:
        """Return the content of rounds.json, in its order."""
        several = [group.as_dict() for group in self.replicates]
        return {
            "metric": self.metric,
            "fingerprint": self.fingerprint,
            "floor": self.floor,
            "floor_se": self.floor_se,
            "resolves": self.resolves,
            **({"yardstick": self.yardstick} if self.yardstick else {}),
            "rounds": [self.row(r) for r in self.rounds],
            "ship": {use: asdict(choice) for use, choice in self.ship.items()},
            "next": self.next,
            **({"replicates": several} if several else {}),
            "gates": [{"stage": j.stage, **asdict(j.verdict)} for j in self.gates],
        }

    def row(self, r: RoundResult) -> dict[str, object]:
        """Return the entry of a round in rounds.json."""
        return {
            "round": r.name,
            "coupling": r.coupling,
            "parent": r.parent,
            "student": r.student,
            **({"replicate_of": r.replicate_of, "replicate": r.replicate} if r.replicate else {}),
            self.metric: {str(nfe): distance for nfe, distance in r.distances.items()},
            keys.error(self.metric): {str(nfe): r.error(nfe) for nfe in r.distances},
            "cuts": {str(nfe): values for nfe, values in r.cuts.items()},
            "samplers": r.samplers,
            **r.metrics,
        }

    def text(self) -> str:
        """Return the content of rounds.json, with its hash."""
        return json.dumps(sealed(self.as_dict()), indent=2) + "\n"

    @classmethod
    def read(cls, content: str | bytes, where: str) -> "Comparison":
        """Read the content of a rounds.json; `where` names it in errors.

        Raises ReflowError for one that is damaged, or is no comparison.
        """
        try:
            # Earlier versions wrote no hash, and their comparisons are still compared.
            return _WHOLE.validate_python(_named(opened(content, where, required=False)))
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            reason = f"{place}: {mistake(first)}" if place else mistake(first)
        except ValueError as error:
            reason = str(error)
        raise ReflowError(
            f"{where}: no comparison of rounds ({reason}); run the stage compare again, or {MEND}"
        )


FIXED = ("coupling", "parent", "student", "cuts", "replicate_of", "replicate", "samplers")
_WHOLE = TypeAdapter(Comparison)


def _named(found: object) -> dict[str, object]:
    """Return the content of the file with the field names of the types above."""
    whole = _mapping(found, "the file")
    metric = whole.get("metric")
    if not isinstance(metric, str):
        raise ValueError("metric: expected the name of a distance")
    derived = ("round", "spread", keys.error(metric))  # earlier versions wrote a spread
    rows = [_mapping(row, "a round") for row in _list(whole.get("rounds"), "rounds")]
    judged = [_mapping(row, "a gate") for row in _list(whole.get("gates", []), "gates")]
    rounds = [
        {
            "parent": None,
            "student": False,
            **{key: row[key] for key in FIXED if key in row},
            **({"name": row["round"]} if "round" in row else {}),
            **({"distances": row[metric]} if metric in row else {}),
            "metrics": {k: v for k, v in row.items() if k not in (*FIXED, *derived, metric)},
        }
        for row in rows
    ]
    gates = [{"stage": row.get("stage"), "verdict": row} for row in judged]
    return {"fingerprint": "", "ship": {}, "next": [], **whole, "rounds": rounds, "gates": gates}


def _mapping(value: object, what: str) -> dict[str, object]:
    if not isinstance(value, dict):
        raise ValueError(f"{what}: expected a mapping, got {type(value).__name__}")
    return value


def _list(value: object, what: str) -> Iterable[object]:
    if not isinstance(value, list):
        raise ValueError(f"{what}: expected a list, got {type(value).__name__}")
    return value


def nearest(nfes: Iterable[int], wanted: int = FEW) -> int:
    """Return the NFE that is nearest to `wanted`, the smaller of two.

    >>> nearest([1, 3, 5, 8])
    3
    """
    return min(nfes, key=lambda nfe: (abs(nfe - wanted), nfe))
