"""`reflow doctor`: what is installed, which device, what is wrong and how to fix it."""

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from rich.markup import escape

from flows.cli.console import out
from flows.cli.floors import FLOORS, below
from flows.cli.shadows import shadows
from flows.params.checked import FILE
from flows.project.environment import check_own_code, installed, proxies
from flows.project.git import NO_GIT, git
from fmcore.settings import ReflowError

PACKAGES = ("torch", "prefect", "mlflow", "dvc", "pandas", "pyarrow", "pydantic")
SETUP = "install its wheel again" if installed() else "make setup"
TOO_NEW = {"fastapi": (0, 155), "sqlalchemy": (2, 1)}
"""With these versions or newer, Prefect 3.8 starts but schedules nothing; `pip check` is silent."""


@dataclass(frozen=True)
class Check:
    """The result of one check."""

    state: Literal["ok", "warn", "bad"]
    what: str
    found: str
    mend: str = ""


def examine(root: Path) -> Iterator[Check]:
    """Yield the checks of the installation, the machine and the project."""
    python = ".".join(map(str, sys.version_info[:3]))
    yield Check("ok" if sys.version_info >= (3, 11) else "bad", "python", python, "")
    yield from _packages()
    yield _looked("device", _device)
    yield _disk(root)
    yield _git(root)
    yield _looked(FILE, lambda: _params(root))
    yield _looked("chain", lambda: _lock(root))
    for name in ("PREFECT_HOME", "MLFLOW_TRACKING_URI"):
        yield Check("ok", name, os.environ.get(name, "not set"))
    yield from _proxy()
    yield _code(root)
    for shadow in shadows(root):
        yield Check("bad" if shadow.always else "warn", shadow.package, shadow.found, shadow.mend)
    if url := os.environ.get("PREFECT_API_URL"):
        yield Check("warn", "PREFECT_API_URL", f"{url}: runs report to this server")


def show(root: Path, *, as_json: bool) -> int:
    """Print each check as it is made, or all of them as JSON; return how many are bad."""
    if as_json:
        checks = list(examine(root))
        print(json.dumps([asdict(check) for check in checks], indent=2))
        return sum(check.state == "bad" for check in checks)
    wrong = 0
    for check in examine(root):
        mark = {"ok": "[green]ok[/]  ", "warn": "[yellow]note[/]", "bad": "[red]bad[/] "}
        found = escape(f"{check.what}: {check.found}")
        out.print(f"{mark[check.state]} {found}", highlight=False)
        if check.mend:
            out.print(f"     -> {check.mend}", markup=False)
        wrong += check.state == "bad"
    return wrong


def _looked(what: str, check: Callable[[], Check]) -> Check:
    """Return the result of a check that imports packages, which may be missing or broken."""
    try:
        return check()
    except ImportError as error:
        return Check("bad", what, f"cannot be looked at: {error}", SETUP)


def _packages() -> Iterator[Check]:
    for name in PACKAGES:
        try:
            yield Check("ok", name, version(name))
        except PackageNotFoundError:
            yield Check("bad", name, "not installed", SETUP)
    for floor in FLOORS:
        if found := below(floor):
            mend = f"pip install '{floor.package}>={floor.least}', or {SETUP}"
            yield Check("bad", floor.package, f"{found} has {floor.advisory}: {floor.harm}", mend)
    for name, limit in TOO_NEW.items():
        try:
            found = version(name)
        except PackageNotFoundError:
            yield Check("bad", name, "not installed, and Prefect needs it", SETUP)
            continue
        have = tuple(int(n) for n in found.split(".")[:2] if n.isdigit())
        if have >= limit:
            shown = ".".join(map(str, limit))
            yield Check("bad", name, found, f"Prefect needs {name}<{shown}: {SETUP}")


def _proxy() -> Iterator[Check]:
    if names := proxies(os.environ):
        past = os.environ.get("NO_PROXY", "")
        yield Check("ok", "proxy", f"{', '.join(names)}; requests go past it to: {past}")


def _code(root: Path) -> Check:
    try:
        check_own_code(root)
    except ReflowError as error:
        words, _, mend = str(error).partition("; ")
        return Check("bad", "code", words, mend)
    return Check("ok", "code", str(Path(__file__).parents[2]))


def _device() -> Check:
    import torch

    if torch.cuda.is_available():
        return Check("ok", "device", torch.cuda.get_device_name())
    if shutil.which("nvidia-smi"):
        return Check(
            "warn",
            "device",
            f"cpu, although there is a GPU: torch {torch.__version__} has no CUDA that fits it",
            "pip install torch --index-url <the index of a CUDA build>"
            if installed()
            else "make setup TORCH_INDEX=<the index of a CUDA build>",
        )
    return Check("ok", "device", f"cpu, {os.cpu_count()} cores")


def _disk(root: Path) -> Check:
    free = shutil.disk_usage(root).free / 2**30
    mend = "free some space: models and couplings are kept twice, in the workspace and the cache"
    return Check(
        "ok" if free > 2 else "bad", "disk", f"{free:.1f} GiB free", "" if free > 2 else mend
    )


def _git(root: Path) -> Check:
    try:
        top = Path(git(root, "rev-parse", "--show-toplevel"))
    except ReflowError as error:
        start = "git init && git add -A && git commit -m start"
        return Check("warn", "git", str(error), start if NO_GIT in str(error) else "")
    if top.resolve() == root.resolve():
        return Check("ok", "git", "a repository")
    needs = "`reflow deploy`, `reflow couplings` and `--rev` need a project at the top"
    return Check("warn", "git", f"a folder of {top}; {needs}")


def _params(root: Path) -> Check:
    from flows.params.load import load

    try:
        params = load(root / FILE)
    except ReflowError as error:
        return Check("bad", FILE, str(error).splitlines()[0], "edit that line")
    return Check("ok", FILE, f"rounds {', '.join(params.rounds)} on {params.data.name}")


def _lock(root: Path) -> Check:
    from flows.dag import plan

    try:
        waiting = [p.stage for p in plan.plan(root) if p.state in {"run", "downstream"}]
    except ReflowError as error:
        mend = "" if NO_GIT in str(error) else "mend dvc.yaml, or `git checkout dvc.yaml`"
        return Check("bad", "dvc", str(error), mend)
    if waiting:
        return Check("warn", "chain", f"{len(waiting)} stages to run", "reflow run")
    return Check("ok", "chain", "up to date")
