"""`reflow new`: a parameter file that suits data of the user's own, each choice with its reason."""

import os
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap

from flows.params.load import NAME, Params, load_text
from flows.params.tree import write_text
from flows.start import look
from flows.start.choose import sections
from flows.start.look import Seen
from fmcore.settings import ReflowError

WIDTH = 100
"""Columns of a line; a longer comment goes above its line."""
HEAD = """\
# yaml-language-server: $schema=../params.schema.json
# Written by `reflow new {name}`; each comment says what was seen. Change what you know better.
"""


@dataclass(frozen=True)
class Source:
    """Where the data lie, one of the three, and what a person says about them."""

    images: Path | None = None
    array: Path | None = None
    parquet: Path | None = None
    label: str | None = None
    layout: str | None = None


def new(root: Path, name: str, source: Source, *, gpu: bool, force: bool) -> tuple[Path, Seen]:
    """Look at the data and write params/NAME.yaml; return the file and what was seen.

    Raises ReflowError, before anything is written, if the data cannot be used.
    """
    if not NAME.fullmatch(name):
        raise ReflowError(f"{name}: expected a name of small letters, digits and _, such as cats")
    file = root / "params" / f"{name}.yaml"
    if file.exists() and not force:
        raise ReflowError(f"{file.relative_to(root)}: is there; take another name, or --force")
    seen = _looked(source, gpu)
    text = HEAD.format(name=name) + _text(_placed(seen, root), gpu)
    load_text(text, file, root)
    write_text(file, text)
    return file, seen


def absolute(params: Params, root: Path) -> Params:
    """Return parameters whose data are found from any folder."""
    data = params.data
    places = {k: str(root / getattr(data, k)) for k in ("root", "path") if hasattr(data, k)}
    return params.model_copy(update={"data": data.model_copy(update=places)})


def _looked(source: Source, gpu: bool) -> Seen:
    given = [place for place in (source.images, source.array, source.parquet) if place is not None]
    if len(given) != 1:
        raise ReflowError(
            "name the data once: --images FOLDER, --array FILE (.npy, .npz, .csv) or --parquet FILE"
        )
    if source.images is not None:
        if source.label or source.layout:
            raise ReflowError("--label, --layout: are for files; sub-folders are classes of images")
        return look.images(source.images, gpu=gpu)
    if source.parquet is not None and source.parquet.suffix.lower() != ".parquet":
        raise ReflowError(f"--parquet: {source.parquet}: expected a .parquet file; see --array")
    return look.array(given[0], label=source.label, layout=source.layout)


def _placed(seen: Seen, root: Path) -> Seen:
    """Return what was seen with the place of the data as the project sees it."""
    key = "root" if "root" in seen.settings else "path"
    place = Path(os.path.abspath(seen.settings[key]))  # noqa: PTH100  a link stays one
    inside = place.is_relative_to(root)
    path = place.relative_to(root).as_posix() if inside else place.as_posix()
    note = [seen.why.get(key, ""), "" if inside else "outside of the project, so in full"]
    why = {**seen.why, key: "; ".join(filter(None, note))}
    return Seen({**seen.settings, key: path}, why, seen.samples, seen.numbers, seen.lines)


def printable(text: str) -> str:
    """Return a text as one line: names of columns and classes may hold any character.

    >>> printable("note\\nseed: 7")
    'note seed: 7'
    """
    return "".join(c if c.isprintable() else " " for c in text)


def _text(seen: Seen, gpu: bool) -> str:
    """Return the text of a parameter file; comments too long for a line go above it."""
    blocks = ["\n".join(f"# {printable(line)}" for line in seen.lines)]
    for section in sections(seen, gpu=gpu):
        lines = []
        for line, comment in section:
            comment = printable(comment)
            beside = f"{line}  # {comment}"
            if comment and len(beside) > WIDTH:
                indent = " " * (len(line) - len(line.lstrip())) + "# "
                lines += wrap(comment, WIDTH, initial_indent=indent, subsequent_indent=indent)
                lines.append(line)
            else:
                lines.append(beside if comment else line)
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks).replace("\n\n", "\n", 1) + "\n"
