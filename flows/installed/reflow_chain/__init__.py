"""What the wheel installs at its top: the command `reflow`, and the way to the code beside it.

Strangers own the names `flows` and `fmcore` on PyPI. So the wheel keeps its packages of these names
in the folder `code` of this package. `reflow_chain.pth` puts that folder last into Python's path:
`import fmcore` works where no stranger's package is installed. This package puts it first, and so
does the command `reflow`, also for all that it starts. In a checkout there is no such folder.
"""

import os
import sys
from pathlib import Path

CODE = Path(__file__).resolve().parent / "code"
GIVEN = os.environ.get("PYTHONPATH", "")
"""PYTHONPATH as it was: `reflow doctor` asks what is found by it."""


def chosen() -> bool:
    """Whether PYTHONPATH names another copy of this code: whoever set it wants that copy."""
    folders = [Path(part) for part in GIVEN.split(os.pathsep) if part]
    own = [folder for folder in folders if (folder / "flows" / "stage" / "words.py").is_file()]
    return bool(own) and own[0].resolve() != CODE


def come_first() -> None:
    """Put the folder of the code first into this process's path, unless another copy is chosen."""
    if CODE.is_dir() and not chosen():
        sys.path[:] = [str(CODE), *(place for place in sys.path if place != str(CODE))]


def main() -> None:
    """Entry point of the command `reflow`; what it starts finds the same code first."""
    come_first()
    if CODE.is_dir() and not chosen() and GIVEN.split(os.pathsep)[0] != str(CODE):
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(CODE), GIVEN]))
    from flows.cli.main import main as command

    command()


come_first()
