"""`reflow push-hub` and `reflow pull-hub`: models and couplings on a hub, with their cards."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli import complete
from flows.cli.console import one_line_errors, project, say
from flows.project.environment import find_root
from fmcore.coupling.manifest import MANIFEST
from fmcore.settings import ReflowError

if TYPE_CHECKING:
    from flows.compare.data_card import Made
    from flows.dag.lock import Entry
    from flows.library.handed import Handed
    from flows.library.hub import Pulled

STOPPED = "stopped; the same command goes on from what has arrived"


def push_hub(
    what: Annotated[
        str,
        typer.Argument(
            metavar="FOLDER",
            help="models/rf2, couplings/rf1, or a folder of `ship --to`; or its name alone.",
            autocompletion=complete.handed,
        ),
    ],
    repo: Annotated[str, typer.Option(help="The repository: user/name.")],
    private: Annotated[bool, typer.Option("--private", help="Make it for your eyes only.")] = False,
    revision: Annotated[
        str | None, typer.Option(help="Commit to this branch; it is made. Default: main.")
    ] = None,
    message: Annotated[str | None, typer.Option("-m", "--message", help="Of the commit.")] = None,
    licence: Annotated[
        str | None, typer.Option("--licence", "--license", help="For the card: mit.")
    ] = None,
) -> None:
    """Send a model or a coupling to a hub as one commit, every byte checked, with its card."""
    from flows.library.hub import push

    with one_line_errors("stopped before the hub confirmed a commit; do the same again"):
        handed = _handed(what, repo, licence)
        done = push(
            handed, repo, private=private, revision=revision,
            message=message or f"{Path(what).name}: {handed.kind} by reflow push-hub",
        )  # fmt: skip
    files = len(handed.files) + 1
    said = "is" if done.changed else "was there already as"
    say(f"{repo} {said} commit {done.commit}: {handed.kind}, {files} files, {handed.bytes:,} bytes")
    say(f"{done.url}; `reflow pull-hub {repo} --to FOLDER` fetches it")


def pull_hub(
    repo: Annotated[
        str, typer.Argument(metavar="REPO", help="user/name, or datasets/user/name of a coupling.")
    ],
    to: Annotated[Path, typer.Option("--to", help="The new folder.")],
    revision: Annotated[
        str | None, typer.Option(help="A branch, tag or commit. Default: main.")
    ] = None,
) -> None:
    """Fetch what `push-hub` sent and check every byte; the folder appears whole or not at all."""
    from flows.library.hub import pull

    with one_line_errors(STOPPED):
        done = pull(repo, to, revision=revision)
    say(f"{to}: whole; {done.kind} of {repo} at commit {done.commit}")
    say(_how_to_use(done))


def _how_to_use(done: "Pulled") -> str:
    if done.kind == "coupling":
        return (
            f"couplings: {{NAME: {{round: scratch, import: {{kind: reflow, path: {done.data}}}}}}}"
        )
    if done.kind == "model":
        entry = f"model: {{kind: reflow, path: {done.data}}}"
        return f"rounds: {{NAME: {{coupling: independent, init: scratch, {entry}}}}}"
    return f"{done.folder / 'README.md'} says how it is loaded"


def _handed(what: str, repo: str, licence: str | None) -> "Handed":
    """Return the files that `what` names, checked, with a card and its numbers."""
    from flows.library import handed

    folder = Path(what)
    if (folder / handed.INDEX).is_file():
        if licence:
            raise ReflowError(f"{folder}: has its card, {handed.CARD}; write the licence there")
        return handed.sealed_folder(folder)
    if (folder / MANIFEST).is_file() and not _is_of_a_chain(folder):
        return _coupling(folder, folder.name, repo, licence)
    root = project()
    entry = _entry(root, what)
    if entry.verb == "train":
        return _model(root, entry, repo, licence)
    return _coupling_of_chain(root, entry, repo, licence)


def _is_of_a_chain(folder: Path) -> bool:
    try:
        root = find_root(Path.cwd())
    except ReflowError:
        return False
    return any(_is_at(root, entry, folder) for entry in _entries(root))


def _entries(root: Path) -> list["Entry"]:
    from flows.dag.lineage import lock_entries

    entries = lock_entries(root).values()
    return [e for e in entries if e.runs("train", "out") or e.runs("couple", "out")]


def _is_at(root: Path, entry: "Entry", folder: Path) -> bool:
    return (root / entry.paths["out"]).resolve() == folder.resolve()


def _entry(root: Path, what: str) -> "Entry":
    """Return the entry of dvc.lock that made the folder or has the name `what`."""
    entries = _entries(root)
    found = [e for e in entries if _is_at(root, e, Path(what))]
    found = found or [e for e in entries if e.key == what]
    if len(found) == 1:
        return found[0]
    if found:
        both = " or ".join(e.paths["out"] for e in found)
        raise ReflowError(f"{what} is a round and a coupling; say {both}")
    known = ", ".join(e.paths["out"] for e in entries) or "none"
    raise ReflowError(
        f"{what}: no model or coupling that dvc.lock records ({known}), nor a folder with"
        " reflow.json, which `reflow ship --to` writes"
    )


def _model(root: Path, entry: "Entry", repo: str, licence: str | None) -> "Handed":
    from flows.compare.card import card
    from flows.compare.chains import workspace_chain
    from flows.library.handed import CARD, Handed, model_files
    from flows.library.models import recorded

    files = model_files(recorded(root, entry, "model"))
    use = [
        "```sh", f"reflow pull-hub {repo} --to pulled", "```", "", "As a round of a chain:", "",
        "```yaml", "rounds:", "  teacher: {coupling: independent, init: scratch,"
        " model: {kind: reflow, path: pulled}}", "```", "", "In a notebook:", "", "```python",
        "import fmcore", 'flow = fmcore.load_flow("pulled")', "```",
    ]  # fmt: skip
    text = card(workspace_chain(root), entry.key, None, use=use, licence=licence)
    return Handed("model", {**files, CARD: text.encode()})


def _coupling_of_chain(root: Path, entry: "Entry", repo: str, licence: str | None) -> "Handed":
    from flows.compare.chains import workspace_chain
    from flows.compare.data_card import Made
    from flows.library.models import recorded

    folder, chain = recorded(root, entry, "coupling"), workspace_chain(root)
    metrics = json.loads(chain.read(entry.path("metrics")) or b"{}")
    made = Made(str(entry.setting(f"couplings.{entry.key}", "round")), metrics, chain)
    return _coupling(folder, entry.key, repo, licence, made)


def _coupling(
    folder: Path, name: str, repo: str, licence: str | None, made: "Made | None" = None
) -> "Handed":
    from flows.compare.data_card import data_card
    from flows.library.handed import CARD, Handed, coupling_files
    from fmcore.coupling.read import open_coupling

    files = coupling_files(folder)
    text = data_card(name, repo, open_coupling(folder).about, made, licence)
    return Handed("coupling", {**files, CARD: text.encode()})
