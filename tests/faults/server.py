"""Runs stages in children of one warm interpreter, each with a fault at one of its calls.

`python -m tests.faults.server`, with calls.c preloaded: reads one request a line (JSON), forks, and
answers with the exit status, what the child printed, and the calls that it made.
"""

import contextlib
import ctypes
import gc
import importlib
import json
import os
import sys
import traceback
from functools import partial
from pathlib import Path

import torch

from flows.params.load import load
from flows.params.seeds import seed_of
from flows.project.environment import configure
from flows.stage import finished, shards, verbs
from flows.stage.words import read_words
from flows.stage.work import work_of
from fmcore.couple import couple, couple_shards
from tests.faults.stages import COMMANDS, STAGES


def bare(root: Path, stage: str) -> None:
    """Do what the guard and a verb do, without DVC: its hashing would take most of the time."""
    params = load(root / "params.yaml")
    command = read_words(STAGES[stage].words)
    paths = {name: Path(path) for name, path in command.paths.items()}
    scratch = root / ".reflow" / "scratch" / stage / "fingerprint"
    arm()
    scratch.mkdir(parents=True, exist_ok=True)
    if stage == "shards":
        wanted = shards.parse("1:3", 3)
        work = work_of(params, scratch, seed=seed_of(params, "couple", "rf1"))
        couple_shards(paths["model"], paths["data"], params.couplings["rf1"], wanted, work)
        return
    if not finished.adopted(root, scratch, stage):
        if command.verb == "couple":  # the verb's adapter asks DVC for shards of other sizes
            work = work_of(params, scratch, seed=seed_of(params, "couple", "rf1"))
            couple(**paths, settings=params.couplings["rf1"], work=work)
        else:
            verbs.VERBS[command.verb](params, command.key, paths, scratch)
    finished.keep(root, scratch, STAGES[stage].outs)


def whole(root: Path, stage: str) -> int:
    """Do all that a command of dvc.yaml does, guard and DVC's hashing included."""
    arm()
    if stage == "shards":
        shards.sample(root, "rf1", "1:3")
        return 0
    return verbs.main(STAGES[stage].words)


arm = partial(print, end="")


def command(box: Path, name: str) -> None:
    """Run one of `COMMANDS` in the project of a box, or print what it made."""
    from tests.faults.commands import COMMANDS

    root = box / "project"
    os.chdir(root)
    chosen = COMMANDS[name.removesuffix(" made")]
    if name.endswith(" made"):
        print(chosen.made(root))
        return
    arm()
    chosen.run(root)


def child(told: dict) -> int:
    """Run one stage in this process, which was forked for it."""
    global arm
    os.chdir(told["root"])
    os.environ["DVC_SITE_CACHE_DIR"] = f"{told['root']}/.reflow/dvc"
    log = os.open(told["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    out = os.open(told["out"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(out, 1)
    os.dup2(out, 2)
    preloaded = ctypes.CDLL(None)
    folder = told["root"].encode()
    arm = partial(preloaded.faults_arm, folder, told["kind"], ctypes.c_long(told["at"]), log)
    run = whole if told["whole"] else bare
    if told["stage"].split()[0] in COMMANDS:
        run = command
        for name in ("DVC_SITE_CACHE_DIR", "MLFLOW_TRACKING_URI", "PREFECT_HOME"):
            os.environ.pop(name, None)
        configure(Path(told["root"], "project"))
    try:
        code = verbs.reported(partial(run, Path(told["root"]), told["stage"]))
    except BaseException:
        traceback.print_exc()
        code = 1
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    Path(told["modules"]).write_text("\n".join(sys.modules))
    return code


def import_all(names: list[str]) -> None:
    """Import what a stage imported late, so that its next trial need not: torch._dynamo for one."""
    for name in names:
        if name not in sys.modules:
            with contextlib.suppress(Exception):
                importlib.import_module(name)
    gc.freeze()  # a child that touches fewer pages starts faster


def main() -> None:
    """Answer requests until the input ends."""
    torch.set_num_threads(1)
    print("ready", flush=True)
    for line in sys.stdin:
        told = json.loads(line)
        if not (pid := os.fork()):
            os._exit(child(told))
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if told["kind"] == 1:  # its first, undisturbed run
            import_all(Path(told["modules"]).read_text().splitlines())
        print(json.dumps({"code": code}), flush=True)


if __name__ == "__main__":
    main()
