"""What each `cmd` of dvc.yaml runs: `python -m flows.stage VERB [KEY] name=path ...`."""

import sys
from pathlib import Path

from flows.project.process_group import die_with_starter


def main(arguments: list[str]) -> int:
    """Run one stage; `inputs` without importing torch, because it runs before every other stage.

    All other imports come after `die_with_starter`: importing torch takes seconds, and the parent
    may be killed meanwhile.
    """
    die_with_starter()
    from flows.project.warm import run_warm

    if (status := run_warm("flows.stage", arguments)) is not None:
        return status
    from flows.project.environment import check_own_code, find_root
    from fmcore.settings import ReflowError

    try:
        root = find_root(Path.cwd())
        check_own_code(root)
    except ReflowError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2
    if arguments == ["inputs", "out=inputs"]:  # STAGE and FOLDER of flows.dag.inputs
        return _record_inputs(root)
    from flows.stage import verbs

    return verbs.main(arguments)


def _record_inputs(root: Path) -> int:
    from flows.dag import inputs
    from fmcore.settings import ReflowError

    try:
        inputs.write(root)
    except (ReflowError, OSError) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
