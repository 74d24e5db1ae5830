"""What each `cmd` of dvc.yaml runs: `python -m flows.stage VERB [KEY] name=path ...`."""

import sys
from pathlib import Path

from flows.dag import inputs
from flows.project.environment import check_own_code, find_root
from fmcore.settings import ReflowError


def main(arguments: list[str]) -> int:
    """Run one stage; `inputs` without importing torch, because it runs before every other stage."""
    try:
        root = find_root(Path.cwd())
        check_own_code(root)
    except ReflowError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2
    if arguments != [inputs.STAGE, f"out={inputs.FOLDER}"]:
        from flows.stage import verbs

        return verbs.main(arguments)
    try:
        inputs.write(root)
    except (ReflowError, OSError) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
