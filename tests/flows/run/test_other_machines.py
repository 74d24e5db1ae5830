"""A run on a machine that is not as one would wish: servers that never answer, no home, no room."""

import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.real_chain import Chain

pytestmark = [pytest.mark.slow, pytest.mark.long]


@pytest.fixture
def chain(finished, tmp_path) -> Chain:
    """A finished chain whose second round has one more step to train."""
    shutil.copytree(finished, tmp_path / "project", symlinks=True)
    chain = Chain(tmp_path / "project")
    chain.edit("params.yaml", "steps: 200", "steps: 201")
    return chain


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a server that accepts every connection and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize(
    ("variable", "path"), [("MLFLOW_TRACKING_URI", ""), ("PREFECT_API_URL", "/api")]
)
def test_a_server_that_never_answers_costs_a_line_and_not_the_work(chain, silent, variable, path):
    words = [f"{variable}={silent}{path}", "timeout", "400", "python", "-m", "flows.cli", "run"]
    done = chain.sh("env", *words, check=False)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert set(chain.plan().values()) == {"unchanged"}
    assert "Traceback" not in said
    told = [line for line in said.splitlines() if "not answer" in line]
    assert 1 <= len(told) <= 2 and all(len(line) < 200 for line in told), said


def homes(folder: Path) -> dict[str, Path]:
    """Return homes in which nothing can be written."""
    return {
        "not there": folder / "nowhere" / "home",
        "no folder": Path("/dev/null"),
        "not ours": Path("/proc"),
    }


@pytest.mark.parametrize("kind", ["not there", "no folder", "not ours"])
def test_a_home_that_cannot_be_written_is_not_needed(chain, tmp_path, kind):
    home = homes(tmp_path)[kind]
    done = chain.sh("env", f"HOME={home}", "python", "-m", "flows.cli", "run", check=False)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert "Traceback" not in said
    assert set(chain.plan().values()) == {"unchanged"}


def test_without_a_home_at_all(chain):
    done = chain.sh("env", "-u", "HOME", "python", "-m", "flows.cli", "run", check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_full_tmp_is_one_line_or_not_needed(chain):
    """Temporary files have one page, where the system lets us mount such a folder."""
    script = (
        "mount -t tmpfs -o size=4k tmpfs /var/tmp && export TMPDIR=/var/tmp &&"
        " exec python -m flows.cli run"
    )
    probe = chain.sh("unshare", "-m", "sh", "-c", "mount -t tmpfs tmpfs /mnt", check=False)
    if probe.returncode:
        pytest.skip("mounting is not allowed here")
    done = chain.sh("unshare", "-m", "sh", "-c", script, check=False)
    said = done.stdout + done.stderr
    assert "Traceback" not in said, said
    assert done.returncode == 0 or "No space left" in said, said
