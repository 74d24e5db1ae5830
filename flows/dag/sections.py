"""What `prepare` and the stages that decode read of params.yaml only where it is set.

DVC refuses parameters that are absent, and a stage must not depend on what it does not use. So
these are no parameters of a stage in dvc.yaml, but parts of its file of `inputs`.
"""

from collections.abc import Iterator, Mapping
from typing import Any, TypeGuard

CODEC = "data.codec"


def sections(verb: str, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Return sections of params.yaml that decide what `prepare` writes: a source that is no noise
    and, where a codec encodes, `compute`."""
    if verb != "prepare":
        return {}
    source = _texts(chosen.get("source"))
    found = {"source": source} if source and source.get("name") != "noise" else {}
    return found | ({"compute": _texts(chosen.get("compute"))} if codec(chosen) else {})


def codec(chosen: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the section of the codec among what a stage reads; empty without one."""
    data = chosen.get("data")
    found = data.get("codec") if _is(data) else chosen.get(CODEC)
    return found if _is(found) else {}


def files(chosen: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (place, path) of the folder of a codec of diffusers."""
    of = codec(chosen)
    if of.get("name") == "diffusers" and isinstance(of.get("path"), str):
        yield f"{CODEC}.path", of["path"]


def _texts(value: Any) -> dict[str, str]:
    return {str(key): str(inner) for key, inner in value.items()} if _is(value) else {}


def _is(value: Any) -> TypeGuard[Mapping[str, Any]]:
    return isinstance(value, Mapping)
