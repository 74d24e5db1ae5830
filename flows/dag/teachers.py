"""Files that the model of a round not trained here is read from, by their place in params.yaml."""

from collections.abc import Iterator, Mapping
from typing import Any, TypeGuard

KEYS = {
    "diffusers": ("path", "scheduler", "condition"),
    "own": ("weights",),
    "reflow": (),
}
"""For each kind of model, the settings that name files."""


def own_classes(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the networks of one's own that rounds take over, by place; later rounds have them."""
    given = params.get("rounds")
    rounds: Mapping[str, Any] = given if isinstance(given, Mapping) else {}
    models = {key: round_.get("model") for key, round_ in rounds.items() if _is(round_)}
    return {
        f"rounds.{key}.model.network": model["network"]
        for key, model in models.items()
        if _is(model) and _is(model.get("network"))
    }


def files(chosen: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (place, path) of the files and folders of a round's section `model`, among others."""
    model = next((value for key, value in chosen.items() if key.endswith(".model")), None)
    if not _is(model):
        return
    for key in KEYS.get(str(model.get("kind")), ()):
        if isinstance(model.get(key), str):
            yield f"model.{key}", model[key]
    if model.get("kind") == "reflow" and not model.get("rev") and model.get("path"):
        round_ = model.get("round")
        yield "model.path", f"{model['path']}/models/{round_}" if round_ else str(model["path"])


def size(files: int, count: int) -> str:
    """Return a number of files and of bytes in words.

    >>> size(1, 2048)
    '1 file, 2,048 bytes'
    """
    return f"{files:,} file{'' if files == 1 else 's'}, {count:,} bytes"


def _is(value: Any) -> TypeGuard[Mapping[str, Any]]:
    return isinstance(value, Mapping)
