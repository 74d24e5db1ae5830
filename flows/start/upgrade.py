"""`reflow upgrade`: the files of a project become those of the installed version."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from flows.dag.foreseen import plan_with
from flows.dag.plan import Planned, plan
from flows.start import templates
from flows.start.templates import Record, hashed

OTHER = "\0"
"""Stands for the content of a file that is not to be touched."""


@dataclass(frozen=True)
class Upgrade:
    """What an upgrade of a project would do: the version before and after, and the files.

    `rewritten` are new or unchanged copies of earlier ones, `edited` stay as they are, `removed`
    are unchanged copies of files that the version no longer has.
    """

    before: str
    after: str
    rewritten: Mapping[str, str]
    edited: tuple[str, ...]
    removed: tuple[str, ...]
    record: Record

    @property
    def nothing(self) -> bool:
        """Whether the project has all files of the version already."""
        return not self.rewritten and not self.removed and self.before == self.after


def prepared(root: Path) -> Upgrade:
    """Return what an upgrade would do. Raises ReflowError for a project without a record."""
    record, wanted = Record.read(root), templates.kept()
    rewritten, edited, known = {}, [], dict(record.files)
    for name, text in wanted.items():
        now = _text(root, name)
        if now == text:
            known[name] = hashed(text)
        elif now is None or hashed(now) == record.files.get(name):
            rewritten[name] = text
            known[name] = hashed(text)
        else:
            edited.append(name)
    removed = []
    for name in sorted({*record.files} - {*wanted}):
        now = _text(root, name)
        if now is not None and hashed(now) == record.files[name]:
            removed.append(name)
        known.pop(name)
    version = templates.installed_version()
    new = Record(version, known)
    return Upgrade(record.version, version, rewritten, tuple(edited), tuple(removed), new)


def planned(root: Path, upgrade: Upgrade) -> list[Planned]:
    """Return what a run after the upgrade will do.

    Raises ReflowError if the new stages do not suit the project.
    """
    text = upgrade.rewritten.get("dvc.yaml")
    return plan(root) if text is None else plan_with(root, text)


def carry_out(root: Path, upgrade: Upgrade) -> None:
    """Write the files of the version, and the record of them."""
    for name, text in upgrade.rewritten.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    for name in upgrade.removed:
        (root / name).unlink()
    upgrade.record.write(root)


def _text(root: Path, name: str) -> str | None:
    """Return the text of a file, None if there is none.

    What is no text, or lies elsewhere by a link, is a text that no template has.
    """
    file = root / name
    if file.resolve() != root.resolve() / name:
        return OTHER
    try:
        return file.read_text()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError):
        return OTHER
