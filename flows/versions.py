"""Versions of couplings in the git history, and changing the parameter file."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

from rich.table import Table
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from flows.params import FILE, load
from flows.tracking.records import arguments
from fmcore.settings import ReflowError


def git(root: Path, *words: str) -> str:
    """Run git in the project and return what it prints; its error in one line."""
    done = subprocess.run(
        ["git", "-C", str(root), *words], capture_output=True, text=True, check=False
    )
    if done.returncode:
        reason = (done.stderr.strip() or "no message").splitlines()[-1]
        raise ReflowError(f"git {words[0]}: {reason}; is the project a git repository?")
    return done.stdout


def versions(root: Path) -> list[dict[str, Any]]:
    """Return every version of every coupling in dvc.lock's history, newest first.

    Versions are told apart by DVC's hash; each is listed with the newest commit that has it, the
    one to fetch it from: `dvc get . PATH --rev COMMIT`.
    """
    found: dict[tuple[str, str], dict[str, Any]] = {}
    log = git(root, "log", "--format=%h %cs", "--", "dvc.lock")
    current = [("workspace", "")] if (root / "dvc.lock").exists() else []
    for commit, date in current + [tuple(line.split()) for line in log.splitlines()]:
        text = (
            (root / "dvc.lock").read_text()
            if commit == "workspace"
            else git(root, "show", f"{commit}:dvc.lock")
        )
        for row in _couplings(text):
            key = (row["coupling"], row["md5"])
            known = found.setdefault(key, {**row, "commit": commit, "date": date})
            if known["commit"] == "workspace" and commit != "workspace":
                known.update(commit=commit, date=date)
    return list(found.values())


def _couplings(text: str) -> list[dict[str, Any]]:
    try:
        stages = (YAML(typ="safe").load(text) or {}).get("stages", {})
    except YAMLError:
        return []  # a merge conflict committed by mistake is no version of anything
    rows = []
    for name, entry in stages.items():
        if not (name.startswith("couple@") or name == "prepare"):
            continue
        path = arguments(entry["cmd"])["out"]
        made = next(o for o in entry["outs"] if o["path"] == path)
        values: dict[str, Any] = next(iter(entry.get("params", {}).values()), {})
        settings = values.get(f"couplings.{name.removeprefix('couple@')}", {})
        rows.append(
            {
                "coupling": path,
                "md5": made["md5"],
                "pairs": settings.get("pairs"),
                "solver": settings.get("solver"),
                "bytes": made.get("size"),
                "files": made.get("nfiles"),
            }
        )
    return rows


def versions_table(found: list[dict[str, Any]]) -> Table:
    """Lay out the versions."""
    table = Table(box=None, pad_edge=False)
    for column in ("coupling", "commit", "date", "hash", "solver"):
        table.add_column(column)
    for column in ("pairs", "bytes"):
        table.add_column(column, justify="right")
    for row in found:
        solver = row["solver"]
        shown = f"{solver['name']} {solver['steps']}" if solver else ""
        pairs = f"{row['pairs']:,}" if row["pairs"] else ""
        size = f"{row['bytes']:,}" if row["bytes"] else ""
        table.add_row(
            row["coupling"], row["commit"], row["date"], row["md5"][:12], shown, pairs, size
        )
    return table


def use_params(root: Path, file: Path, *, force: bool) -> None:
    """Check a parameter file and copy it over params.yaml; refuses to lose uncommitted edits."""
    load(file)
    current = root / FILE
    known = not git(root, "status", "--porcelain", "--", FILE).strip()
    presets = [p.read_bytes() for p in (root / "params").glob("*.yaml")]
    if not (force or known or current.read_bytes() in presets):
        raise ReflowError(
            f"{FILE} has edits that git does not have; commit them first, or use --force"
        )
    if file.resolve() != current:
        shutil.copyfile(file, current)
