"""The kinds of pairs from outside: each is a settings class with `open`."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from fmcore.outside.arrays import NpyPiece, NpzPiece, SafetensorsPiece
from fmcore.outside.chain import ChainRows
from fmcore.outside.names import ends_of, states_of
from fmcore.outside.own import Custom
from fmcore.outside.rows import FileRows, Piece, check, files_of, statement_of
from fmcore.outside.samples import TarPiece, TorchPiece
from fmcore.outside.states import NAME, TIMES, States
from fmcore.outside.tables import ArrowPiece, ParquetPiece
from fmcore.settings import ReflowError, Settings

Value = Annotated[float, Field(ge=-1e12, le=1e12)]


Layout = Literal["parquet", "datasets", "npy", "npz", "safetensors", "pt", "webdataset"]


class Files(Settings):
    """Pairs in files, their two ends under names."""

    name: Layout = Field(alias="kind")
    """The layout: columns of Parquet or Arrow files; a split that `save_to_disk` wrote; .npy files,
    .npz or .safetensors with a row a pair; a .pt file a pair; tar shards. Look into
    docs/how-to/outside-pairs.md for each."""
    path: str
    """The file, or the folder with all files; from the project's folder, or absolute."""
    target: str | None = None
    """Name of the target, t = 0: a column, an array or the ending of a file. null takes `target`,
    or one of x0 and x1 as `source_at` says."""
    source: str | None = None
    """Name of the source, t = 1: the noise from which the target was made. null takes `source`, or
    one of x0 and x1 as `source_at` says."""
    label: str | None = None
    """Name of the class of each pair, a whole number from 0, or in Parquet and Arrow a text of
    `data.conditions`. null takes `label` if it is there."""
    states: States | None = None
    """The states of each path between its ends, for `train.pieces`; `store.pieces` says which are
    kept. null takes `states` where the files, or one beside them, say their times."""
    source_at: Literal[0, 1] | None = None
    """Which of x0 and x1 is the source, where the ends are named so: half of public code has the
    noise at t = 0."""
    range: list[Value] | None = Field(default=None, min_length=2, max_length=2)
    """The values of the targets that the bytes 0 and 255 stand for, [-1, 1] for most images. Needed
    where targets are bytes, and for them alone."""
    channels_last: bool = False
    """Whether both sides are images [H, W, C], to become [C, H, W]."""
    units: Literal["data", "model"] | None = None
    """Units of the targets: those of the data, mapped by data.scale as prepared data are, or those
    of the model. null takes what `reflow export` wrote beside the pairs, else the data's."""
    real: Literal["target", "source"] | None = None
    """The side that holds real samples: what is held out then depends on their content, as it does
    for prepared data. null holds out by the number of the pair."""

    @field_validator("path")
    @classmethod
    def _is_here(cls, path: str) -> str:
        if "://" in path:
            raise ValueError(
                "files are read where they lie on this machine, and only kind reflow from a URL;"
                " copy them first, as by `dvc import-url`, and give that folder"
            )
        return path

    def open(self, place: str | None = None) -> FileRows:
        """Return the pairs, counted and named; `place` replaces the path.

        Raises ReflowError for files that are missing, damaged or not what is said of them.
        """
        path = Path(place or self.path).absolute()
        statement = statement_of(path)
        pieces = OPENED[self.name](path, self)
        check(pieces, path, statement)
        pieces = [piece for piece in pieces if piece.count]  # an empty part of a whole is no fault
        first = pieces[0]
        states = states_of(pieces, self.states, statement)
        named = (self.target, self.source, self.label, self.source_at)
        ends = ends_of(first.names, first.place, *named, states)
        needed = ends.names(states=True)
        for piece in pieces:
            if missing := [name for name in needed if name not in piece.names]:
                raise ReflowError(
                    f"{piece.place}: has no {missing[0]!r}, the files before have one"
                )
        return FileRows(pieces, ends, statement)


class Chain(Settings):
    """A coupling of another reflow project, of the same data in the same units."""

    name: Literal["reflow"] = Field(alias="kind")
    path: str
    """The folder of the other project, or its git URL; or the folder of one coupling, or s3://."""
    coupling: str | None = None
    """The coupling's name there, such as rf1. null where `path` is the folder of the coupling."""
    rev: str | None = None
    """The commit, tag or branch of the other project. null takes its folder as it is. A branch is
    looked up when the stage runs, so name a commit or a tag."""

    @model_validator(mode="after")
    def _a_commit_is_of_a_project(self) -> "Chain":
        if self.rev is not None and self.path.startswith("s3://"):
            raise ValueError(
                f"rev: {self.path} is a folder in S3, which has no commits; leave it out"
            )
        return self

    @property
    def elsewhere(self) -> bool:
        """Whether the coupling has to be fetched: it is in a commit, or behind a URL."""
        return self.rev is not None or (":" in self.path and not self.path.startswith("s3://"))

    @property
    def folder(self) -> str:
        """The folder of the coupling in a project that is a folder here."""
        return f"{self.path}/couplings/{self.coupling}" if self.coupling else self.path

    def open(self, place: str | None = None) -> ChainRows:
        """Return the pairs; `place` is the folder to which they were fetched."""
        if place is None and self.elsewhere:
            raise ReflowError(
                f"{self.path}: only a stage fetches a revision or a URL; `dvc get` it, and give the"
                " folder"
            )
        return ChainRows(place or self.folder)


Import = Annotated[Files | Chain | Custom, Field(discriminator="name")]
"""Where pairs from outside are, and how they are laid out."""


def _tables(path: Path, _: Files) -> list[Piece]:
    files = files_of(path, (".parquet", ".arrow", ".feather"))
    return [ParquetPiece(f) if f.name.endswith(".parquet") else ArrowPiece(f) for f in files]


def _datasets(path: Path, _: Files) -> list[Piece]:
    if (path / "dataset_dict.json").is_file():
        raise ReflowError(f"{path}: holds several splits; name the folder of one, as train")
    return [ArrowPiece(file) for file in files_of(path, (".arrow",))]


def _npy(path: Path, settings: Files) -> list[Piece]:
    if path.is_file():
        raise ReflowError(f"{path}: kind npy takes the folder of target.npy and source.npy")
    given = {settings.target, settings.source, settings.label, "label", "pair_id"}
    ours = all((path / f"{name}.npy").is_file() for name in (NAME, TIMES))
    given |= {settings.states.name, TIMES} if settings.states else {NAME, TIMES} if ours else set()
    given |= set() if settings.target and settings.source else {"target", "source", "x0", "x1"}
    found = files_of(path, (".npy",))  # a folder may hold other arrays, of other lengths
    return [NpyPiece(path, [file for file in found if file.stem in given] or found)]


def _torch(path: Path, _: Files) -> list[Piece]:
    if path.is_file():
        raise ReflowError(f"{path}: kind pt takes a folder with a file for each pair")
    return [TorchPiece(path, files_of(path, (".pt", ".pth")))]


OPENED: dict[Layout, Callable[[Path, Files], list[Piece]]] = {
    "parquet": _tables,
    "datasets": _datasets,
    "npy": _npy,
    "npz": lambda path, _: [NpzPiece(file) for file in files_of(path, (".npz",))],
    "safetensors": lambda path, _: [
        SafetensorsPiece(file) for file in files_of(path, (".safetensors",))
    ],
    "pt": _torch,
    "webdataset": lambda path, _: [TarPiece(file) for file in files_of(path, (".tar",))],
}
"""The files of a path by their layout, opened: names and counts are read, not their rows."""
