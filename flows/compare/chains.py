"""The chains to compare: the workspace's, those of git revisions, those that MLflow holds."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from flows.dag import lineage
from flows.dag.chain import trained
from flows.dag.description import Description, Read, describe
from flows.dag.identity import whole_chain
from flows.dag.outputs import store
from flows.dag.outputs.content import reader
from flows.dag.receipts import spent
from flows.library.history import resolve
from flows.project.git import git
from fmcore.settings import ReflowError
from fmcore.verdict.comparison import Comparison

WORKSPACE = "workspace"


@dataclass(frozen=True)
class ComparedChain:
    """A chain: its name here, its description, its comparison, and a reader of its files.

    `spent` is what each round cost on this machine, if it was made here (`receipts.spent`).
    """

    name: str
    about: Description
    found: Comparison
    read: Read
    spent: dict[str, dict[str, float]] = field(default_factory=dict)


def workspace_chain(root: Path) -> ComparedChain:
    """Return the chain of the workspace, as dvc.lock has it."""
    found = _recorded(root, None, WORKSPACE, commit_of(root), reader(root))
    entries = lineage.lock_entries(root)
    rounds = whole_chain(root, entries, entries).rounds
    return replace(found, spent={r.name: spent(root, r) for r in rounds})


def commit_of(root: Path) -> str:
    """Return the commit of the workspace, with `+edits` if git has not all of it.

    It is "none" where there is no commit yet, or no git: a chain runs without one.
    """
    try:
        commit = git(root, "rev-parse", "HEAD").strip()
    except ReflowError:
        return "none"
    dirty = git(root, "status", "--porcelain", "--untracked-files=no").strip()
    dirty = dirty or git(root, "status", "--porcelain", "--", "dvc.lock")  # not committed yet
    return commit + ("+edits" if dirty else "")


def chain_at(root: Path, rev: str) -> ComparedChain:
    """Return the chain of a git revision or an experiment; its files come from DVC."""
    try:
        commit = resolve(root, rev).ref
    except ReflowError:
        raise ReflowError(
            f"--rev {rev}: no such commit, branch, tag or experiment here; `git branch -a` and"
            " `dvc exp list -A` list them"
        ) from None
    return _recorded(root, commit, rev, commit, store.files_at(root, commit))


def _recorded(root: Path, rev: str | None, name: str, commit: str, read: Read) -> ComparedChain:
    entries = lineage.lock_entries(root, rev)
    if not trained(entries):
        raise ReflowError(f"{name}: dvc.lock records no round; run the chain there first")
    about = describe(whole_chain(root, entries, entries), read, commit)
    path = about.files.comparison
    if path is None:
        raise ReflowError(f"{name}: dvc.lock has no comparison; run the whole chain there first")
    if (content := read(path)) is None:
        raise ReflowError(
            f"{name}: {path}: neither DVC's cache nor a remote has it; `dvc pull`,"
            " `dvc fetch --all-commits`, or run the chain there again"
        )
    return ComparedChain(name, about, Comparison.read(content, f"{name}: {path}"), read)


def gather(
    root: Path,
    revs: Sequence[str],
    *,
    published: bool,
    skipped: Callable[[str], object] = lambda _: None,
) -> list[ComparedChain]:
    """Return the chains asked for, each once; the workspace's if none is asked for.

    A damaged record of one chain in MLflow does not stop the others: `skipped` gets a line.
    """
    found = [workspace_chain(root) if rev == WORKSPACE else chain_at(root, rev) for rev in revs]
    if published:
        found += _published(root, skipped)
        if not found:
            raise ReflowError("MLflow holds no finished chain yet; `reflow publish` records one")
    if not revs and not published:
        found = [workspace_chain(root)]
    once: dict[str, ComparedChain] = {}
    for one in found:
        once.setdefault(one.about.key, one)  # the key is that of all results, measurements too
    return list(once.values())


def _published(root: Path, skipped: Callable[[str], object]) -> list[ComparedChain]:
    from flows.tracking.published import published

    found = []
    for name, about, read in published(root, skipped):
        content = read(about.files.comparison) if about.files.comparison else None
        if content is not None:
            where = f"MLflow's chain {name}: {about.files.comparison}"
            try:
                compared = Comparison.read(content, where)
            except ReflowError as error:
                skipped(f"left out: {error}")
                continue
            found.append(ComparedChain(name, about, compared, read))
    return found
