"""The words of a stage's command, `VERB [KEY] name=path ...`: one table for all verbs."""

from flows.dag import inputs
from flows.dag.graph import Command
from fmcore.settings import ReflowError

WORDS = {
    "prepare": ("out", "metrics"),
    "initialise": ("data", "out"),
    "calibrate": ("data", "out"),
    "train": ("coupling", "init", "out", "curve", "metrics"),
    "couple": ("model", "data", "out", "metrics"),
    "evaluate": (
        "model", "data", "coupling", "yardstick", "metrics", "fd", "straightness", "out",
    ),
    "compare": ("metrics", "fd", "curves", "yardstick", "out"),
}  # fmt: skip
"""For each verb, the names of the paths that its command has, each once."""

KEYED = {"train": "round", "couple": "coupling", "evaluate": "round"}
"""For each verb with a KEY, what the key names."""


def read_words(arguments: list[str]) -> Command:
    """Read the words of a command. Raises ReflowError for a wrong, missing or repeated word."""
    names = [word for word in arguments if "=" not in word]
    if names[:1] == [inputs.STAGE]:
        raise ReflowError(
            f"dvc.yaml: stage {inputs.STAGE}: unknown words in its command; expected:"
            f" out={inputs.FOLDER}"
        )
    if not names or names[0] not in WORDS:
        raise ReflowError(f"expected a stage: {', '.join(WORDS)}; got {names[:1] or 'none'}")
    verb, keys = names[0], names[1:]
    stage = "@".join(names[:2]) if verb in KEYED else verb
    if verb in KEYED and not keys:
        raise _wrong(stage, f"the name of the {KEYED[verb]} is missing", verb)
    if extra := keys[1 if verb in KEYED else 0 :]:
        raise _wrong(stage, f"unknown word {extra[0]!r}", verb)
    paths: dict[str, str] = {}
    for name, _, path in (word.partition("=") for word in arguments if "=" in word):
        if name not in WORDS[verb]:
            raise _wrong(stage, f"unknown path {name!r}", verb)
        if name in paths:
            raise _wrong(stage, f"path {name!r} twice", verb)
        if not path:
            raise _wrong(stage, f"nothing after {name}=", verb)
        paths[name] = path
    if missing := [name for name in WORDS[verb] if name not in paths]:
        raise _wrong(stage, f"path {missing[0]!r} is missing", verb)
    return Command(verb, keys[0] if keys else "", paths)


def _wrong(stage: str, what: str, verb: str) -> ReflowError:
    expected = ", ".join(WORDS[verb])
    return ReflowError(f"dvc.yaml: stage {stage}: {what} in its command; expected: {expected}")
