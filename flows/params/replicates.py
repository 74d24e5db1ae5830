"""Replicates: rounds of params.yaml that repeat others with other draws in training.

They are rounds and couplings like any others, so DVC caches each. What they share, data, yardstick
and the noise of the evaluation, depends on no number.
"""

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.error import YAMLError

from flows.params.edit import opened, quoted, written
from flows.params.tree import read_text, write_text
from fmcore.settings import ReflowError

if TYPE_CHECKING:
    from flows.params.load import Params

MOST = 1000
"""Replicates of a round; a paired test of so many finds a thirtieth of their spread."""


def replicate(file: Path, count: int, rounds: Collection[str] = ()) -> list[str]:
    """Let a parameter file have `count` replicates of `rounds`, of all if none is named.

    Returns the names of its replicates, the rounds themselves not counted. The file stays as it is
    if that cannot be.
    """
    from flows.params.load import load, load_text

    before = read_text(file)
    try:
        text = replicated(before, count, rounds)
    except (KeyError, TypeError, AttributeError, YAMLError):
        load(file)  # says what is wrong with it
        raise
    params = load_text(text, file)
    if text != before:
        write_text(file, text)
    return [name for name, round_ in params.rounds.items() if round_.replicate]


def replicated(text: str, count: int, only: Collection[str] = ()) -> str:
    """Return a YAML text with replicates 2 to `count` of its rounds in place of any it had.

    A replicate trains on the pairs of the replicate with its number of the round before, where
    there is one, else on the same pairs. Comments stay.

    Raises ReflowError for a round that there is not, and for a name that is taken.
    """
    if not 1 <= count <= MOST:
        raise ReflowError(f"replicates: expected 1 to {MOST}, got {count}")
    yaml, tree = opened(text)
    rounds, couplings = tree["rounds"], tree.get("couplings") or {}
    _remove(rounds, couplings)
    if unknown := [name for name in only if name not in rounds]:
        raise ReflowError(f"no round {unknown[0]!r} to repeat; there are: {', '.join(rounds)}")
    trained = [name for name, round_ in rounds.items() if not round_.get("model")]
    if fixed := [name for name in only if name not in trained]:
        raise ReflowError(f"round {fixed[0]!r} is not trained here, so there is nothing to repeat")
    wanted = [name for name in trained if not only or name in only]
    made = [
        name
        for name, coupling in couplings.items()
        if "import" not in coupling  # nothing is drawn anew
        and coupling["round"] in wanted
        and any(rounds[r]["coupling"] == name for r in wanted)
    ]
    for number in range(2, count + 1):

        def other(name: str, known: Collection[str], number: int = number) -> str:
            return f"{name}_r{number}" if name in known else name

        for name in wanted:
            own = {k: v for k, v in rounds[name].items() if k not in ("seed", "continue")}
            own |= {"coupling": other(own["coupling"], made), "init": other(own["init"], wanted)}
            own |= {"replicate_of": name, "replicate": number}
            _add(rounds, other(name, wanted), own, "rounds")
        for name in made:
            own = {k: v for k, v in couplings[name].items() if k != "seed"}
            own["round"] = other(own["round"], wanted)
            _add(couplings, other(name, made), own, "couplings")
    return written(yaml, tree)


def _remove(rounds: Any, couplings: Any) -> None:
    """Remove the replicates and their couplings, by the names that `replicated` gives them.

    What has another name is the user's own.
    """
    gone = {
        name: f"_r{number}"
        for name, round_ in rounds.items()
        if (number := round_.get("replicate")) and name == f"{round_.get('replicate_of')}_r{number}"
    }
    for name in [*couplings]:
        end = gone.get(couplings[name]["round"])
        if end and name.endswith(end) and name.removesuffix(end) in couplings:
            del couplings[name]
    for name in gone:
        del rounds[name]


def _add(section: Any, name: str, value: Mapping[str, Any], place: str) -> None:
    if name in section:
        raise ReflowError(f"{place}.{name}: a replicate needs this name; rename it")
    section[name] = _in_line(quoted(value))


def _in_line(value: Any) -> Any:
    """Return a section that is written as `{key: value}`, without the comments it had."""
    if isinstance(value, Mapping):
        line = CommentedMap({key: _in_line(inner) for key, inner in value.items()})
        line.fa.set_flow_style()
        return line
    return [_in_line(inner) for inner in value] if isinstance(value, list) else value


def mistakes(params: "Params") -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield (keys, mistake) for replicates that do not repeat their round by their number alone."""
    seen: dict[tuple[str, int], str] = {}
    for name, round_ in params.rounds.items():
        of, number = round_.replicate_of, round_.replicate
        if of is None and number is None:
            continue
        place = ("rounds", name, "replicate_of")
        if of is None or number is None:
            yield place, "replicate_of and replicate belong together; give both, or none"
        elif of not in params.rounds or params.rounds[of].replicate:
            known = ", ".join(n for n, r in params.rounds.items() if not r.replicate)
            yield place, f"no round {of!r} that could be repeated; use one of: {known}"
        elif other := seen.get((of, number)):
            yield place, f"{other} is replicate {number} of {of} already; choose another number"
        elif what := _unlike(params, name, of, number):
            mend = "`reflow replicate` writes the replicates again"
            yield place, f"{what} is not that of {of}, which it repeats; {mend}"
        if of is not None and number is not None:
            seen[of, number] = name


def _unlike(params: "Params", name: str, of: str, number: int) -> str:
    """Return which setting of a replicate is not that of its round; "" if none."""
    own, first = params.rounds[name], params.rounds[of]
    if own.train != first.train:
        return "train"
    if not _same(params, own.init, first.init, number):
        return "init"
    if own.coupling == first.coupling:
        return ""
    pairs, before = (params.couplings.get(r.coupling) for r in (own, first))
    if pairs is None or before is None:
        return "coupling"
    drawn = {"round": "", "seed": None}
    alike = pairs.model_copy(update=drawn) == before.model_copy(update=drawn)
    return "" if alike and _same(params, pairs.round, before.round, number) else "coupling"


def _same(params: "Params", own: str, first: str, number: int) -> bool:
    """Say whether a round is another one, or the replicate of it with this number."""
    found = params.rounds.get(own)
    is_replicate = found and (found.replicate_of, found.replicate) == (first, number)
    return own == first or bool(is_replicate)
