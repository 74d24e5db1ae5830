"""What a chain's data and its yardstick are, by content: the same on every machine and path."""

import hashlib
import json
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

from flows.dag.chain import Chain, Round, chain
from flows.dag.inputs import FOLDER
from flows.dag.lock import Entry, digest
from flows.dag.outputs.store import cached_object
from fmcore.settings import ReflowError
from fmcore.verdict.comparison import Comparison


def whole_chain(root: Path, planned: Mapping[str, Entry], locked: Mapping[str, Entry]) -> Chain:
    """Return the chain of `planned` stages (see `chain`), with the section `source` among settings.

    That section is no parameter of a stage, as it may be absent; the stage `inputs` records it. It
    is left out where its record is nowhere to be found.
    """
    found = chain(planned, locked)
    prepare = next((e for e in planned.values() if e.runs("prepare", "out")), None)
    try:
        known = _recorded(root, prepare) if prepare else {}
    except ReflowError:
        return found
    kept = {"source": known["source"]} if "source" in known else {}
    return replace(found, settings={**found.settings, **kept})


def data_key(root: Path, whole: Chain) -> str:
    """Return a sha256 of the data of a chain: its settings, the content of the files they name.

    Where a file lies does not matter, nor does the seed, which draws from the same data. Settings
    that are written out and settings left at their default count as different.

    Raises ReflowError if nothing in dvc.lock says what the data is.
    """
    entry = next((e for e in whole.entries.values() if e.runs("prepare", "out")), None)
    if entry is None:
        raise ReflowError("dvc.lock: no stage prepare, so the data has no name; `reflow run` first")
    known, given = _recorded(root, entry), entry.setting("data")
    settings: dict[str, Any] = {"data": deepcopy(given) if isinstance(given, Mapping) else {}}
    settings["data"].pop("seed", None)
    settings |= {"source": dict(known["source"])} if "source" in known else {}
    for place in known.get("files", {}):
        _remove(settings, str(place).split("."))  # the path of a file; see `files`
    source = [settings["source"]] if "source" in settings else []
    return digest([settings["data"], known.get("files", {}), known.get("own", {}), *source])


def _remove(settings: dict[str, Any], place: list[str]) -> None:
    """Remove the setting at a place, such as data.codec.path, if it is there."""
    *above, last = place
    for key in above:
        found = settings.get(key)
        if not isinstance(found, dict):
            return
        settings = found
    settings.pop(last, None)


def yardstick_key(root: Path, whole: Chain, round_: Round, found: Comparison) -> str:
    """Return a sha256 of how the distances of a round were measured.

    Two distances compare if their keys are equal: the same data, features, reference, number of
    samples and noise, guidance, and code of the measure.
    """
    scored = round_.evaluate
    if scored is None:
        raise ReflowError(f"{round_.name}: not measured yet; `reflow run` first")
    return digest(
        [
            data_key(root, whole),
            found.metric,
            found.fingerprint,
            whole.settings.get("seed"),
            whole.settings.get("yardstick"),
            [scored.setting("evaluate", key) for key in ("guidance", "seed")],
            _data_seed(whole),
            _recorded(root, scored).get("code", {}),
        ]
    )


def _data_seed(whole: Chain) -> object:
    data = whole.settings.get("data")
    return data.get("seed") if isinstance(data, Mapping) else None


def _recorded(root: Path, entry: Entry) -> Mapping[str, Any]:
    """Return what the stage `inputs` recorded for a stage when it ran; empty without that stage."""
    path = next((p for p in entry.deps if p.startswith(f"{FOLDER}/")), None)
    if path is None:
        return {}
    wanted, file = entry.md5(path), root / path
    content = file.read_bytes() if file.is_file() else None
    if content is None or hashlib.md5(content, usedforsecurity=False).hexdigest() != wanted:
        content = cached_object(root, wanted)
    if content is None:
        raise ReflowError(
            f"{path}: the record of {entry.verb} is missing; `dvc pull` or `dvc repro`"
        )
    found = json.loads(content)
    return found if isinstance(found, Mapping) else {}
