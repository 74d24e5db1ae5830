"""Which arrays of files hold the ends of a pair, its label, and the states between its ends."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from fmcore.outside.states import NAME, States, Times, checked
from fmcore.settings import CONVENTION, ReflowError


class Named(Protocol):
    """A file of arrays: its place, what it says of times of states, and the names of its arrays."""

    place: Path
    times: object

    @property
    def names(self) -> tuple[str, ...]:
        """The names."""


@dataclass(frozen=True)
class Ends:
    """The names of the arrays of a pair: its two ends, its label, its states and their `times`.

    An end without a name is the state at its time, 0 or 1.
    """

    target: str | None
    source: str | None
    label: str | None
    states: str | None = None
    times: Times = ()

    def names(self, *, states: bool) -> list[str]:
        """Return those to be read, with the `states` or without."""
        named = [name for name in (self.target, self.source, self.label) if name]
        needed = states or self.target is None or self.source is None
        return [*named, *([self.states] if self.states and needed else [])]


def ends_of(
    names: Iterable[str],
    place: Path,
    target: str | None,
    source: str | None,
    label: str | None,
    source_at: int | None,
    states: tuple[str, Times] | None = None,
) -> Ends:
    """Choose the arrays of a pair: those named, else `target` and `source`, else `x0` and `x1`.

    Where an end has neither and `states` hold it, it is theirs. Raises ReflowError where that
    leaves a doubt.
    """
    has = list(names)
    plain = target is not None or source is not None
    plain = plain or bool(named(has, "target") or named(has, "source"))
    if not plain and named(has, "x0") and named(has, "x1"):
        if source_at is None:
            raise ReflowError(
                f"{place}: x0 and x1 are data and noise in half of public code, noise and data in"
                " the other; give import.source_at: 1 if x1 is the noise, else 0"
            )
        target, source = ("x0", "x1") if source_at else ("x1", "x0")
    if source_at is not None and {target, source} != {"x0", "x1"}:
        raise ReflowError(
            f"{place}: import.source_at says which of x0 and x1 is the source; with other names"
            " leave it out, and give import.target and import.source"
        )
    at = states[1] if states else ()
    chosen = {
        "target": _end(has, place, "target", target, 0.0 in at),
        "source": _end(has, place, "source", source, 1.0 in at),
    }
    if chosen["target"] is not None and chosen["target"] == chosen["source"]:
        raise ReflowError(f"{place}: target and source are both {chosen['target']!r}; name two")
    of_label = named(has, label or "label")
    if label is not None and of_label is None:
        raise ReflowError(f"{place}: has no {label!r}; it has: {', '.join(has[:12])}")
    return Ends(chosen["target"], chosen["source"], of_label, *(states or ()))


def states_of(
    pieces: Sequence[Named], given: States | None, statement: Mapping[str, Any]
) -> tuple[str, Times] | None:
    """Return the name of the array of states and their times; None where nobody says of any.

    The times are those of the settings, else those that the files or one beside them say. Raises
    ReflowError for states without times, or of other times in another file.
    """
    name = given.name if given else NAME
    having = [(piece, own) for piece in pieces if (own := named(piece.names, name))]
    said = statement.get("times") if statement.get("convention") == CONVENTION else None
    if not having:
        if given or said is not None:
            first, why = pieces[0], "" if given else ", of which the file beside it says the times"
            raise ReflowError(
                f"{first.place}: has no {name!r}{why}; it has: {', '.join(first.names[:12])}; give"
                " import.states.name"
            )
        return None
    place, found = having[0][0].place, having[0][1]
    if given and given.times:
        return found, given.times
    held = {checked(p.times, str(p.place)) for p, _ in having if p.times is not None}
    held |= {checked(said, str(place))} if said is not None else set()
    if len(held) > 1:
        raise ReflowError(
            f"{place.parent}: states at the times {' and '.join(map(str, sorted(held)[:2]))}; all"
            " pairs need the same"
        )
    if not held and given:
        raise ReflowError(
            f"{place}: does not say at which times its {name!r} are; give import.states.times"
        )
    return (found, held.pop()) if held else None


def named(has: Sequence[str], name: str) -> str | None:
    """Return the array of a name; in tar files the ending of a member may be left out."""
    if name in has:
        return name
    return next((n for n in has if n.rpartition(".")[0] == name), None)


def _end(has: list[str], place: Path, side: str, name: str | None, held: bool) -> str | None:
    """Return the array of an end; None where it has none, and states hold it."""
    found = named(has, name or side)
    if found is None and not (held and name is None):
        raise ReflowError(
            f"{place}: has no {name or side!r}; it has: {', '.join(has[:12]) or 'nothing'}; give"
            f" import.{side}"
        )
    return found
