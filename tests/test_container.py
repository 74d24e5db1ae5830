"""The image and the development container, as far as they can be tested without Docker."""

import json
import re
import shlex
import shutil
import tomllib
import zipfile
from fnmatch import fnmatch

import pytest
from packaging.specifiers import SpecifierSet

from tests import installed
from tests.conftest import SOURCE

WORDS = ("ARG", "FROM", "WORKDIR", "COPY", "RUN", "ENV", "USER", "ENTRYPOINT", "CMD")


def instructions():
    """Return the instructions of the Dockerfile: the word, and the rest as one line."""
    lines = (SOURCE / "Dockerfile").read_text().splitlines()
    text = "\n".join(line for line in lines if not line.startswith("#")).replace("\\\n", " ")
    return [tuple(line.split(None, 1)) for line in text.splitlines() if line.strip()]


def copied():
    """Return what is copied from the clone: (source, folder it goes to)."""
    rows = [shlex.split(rest) for word, rest in instructions() if word == "COPY"]
    return [(s, to) for *sources, to in rows if not sources[0].startswith("--") for s in sources]


def in_context(path):
    """Say whether .dockerignore lets a file of the clone into the build; the last match wins."""
    there = True
    for line in (SOURCE / ".dockerignore").read_text().splitlines():
        pattern = line.strip().removeprefix("!")
        if not pattern or pattern.startswith("#"):
            continue
        parts = path.split("/")
        prefixes = ["/".join(parts[: n + 1]) for n in range(len(parts))]
        if pattern.startswith("**/"):
            found = any(fnmatch(part, pattern[3:]) for part in parts)
        else:
            found = any(
                fnmatch(prefix, pattern) and prefix.count("/") == pattern.count("/")
                for prefix in prefixes
            )
        if found:
            there = line.startswith("!")
    return there


@pytest.fixture(scope="module")
def context(tmp_path_factory):
    """The folder /src of the image: the files that are copied, without what is ignored."""
    root = tmp_path_factory.mktemp("image") / "src"
    for source, to in copied():
        if to.startswith("/"):
            continue
        assert (SOURCE / source).exists(), source
        files = [SOURCE / source]
        if files[0].is_dir():
            files = [file for file in files[0].rglob("*") if file.is_file()]
        for file in files:
            name = file.relative_to(SOURCE).as_posix()
            if not in_context(name):
                continue
            inside = file.relative_to(SOURCE / source) if (SOURCE / source).is_dir() else file.name
            place = root / to / inside
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(file, place)
    return root


def test_every_instruction_is_known_and_the_last_user_is_not_root():
    found = instructions()
    assert {word for word, _ in found} <= set(WORDS)
    users = [rest for word, rest in found if word == "USER"]
    made = "".join(rest for word, rest in found if word == "RUN")
    assert users == ["1000"] and "useradd --create-home --uid 1000" in made
    assert json.loads(found[-2][1]) == ["reflow"] and json.loads(found[-1][1]) == ["--help"]


@pytest.mark.slow
def test_what_is_copied_builds_the_wheel_of_the_clone(context, tmp_path):
    assert (context / "scripts/setup.sh").is_file() and (context / "requirements.lock").is_file()
    assert not list(context.rglob("__pycache__")) and not (context / ".dvc/cache").exists()
    own = installed.built(tmp_path / "clone", "wheel")
    image = installed.built(tmp_path / "image", "wheel", context)
    names = zipfile.ZipFile(image).namelist()
    assert sorted(names) == sorted(zipfile.ZipFile(own).namelist())


def test_torch_comes_first_from_the_index_of_the_setup_and_nothing_replaces_it(context):
    found = dict(rest.split("=", 1) for word, rest in instructions() if word == "ARG")
    setup = (context / "scripts/setup.sh").read_text()
    assert found["TORCH_INDEX"] in setup
    about = tomllib.loads((SOURCE / "pyproject.toml").read_text())["project"]
    assert found["PYTHON"] in SpecifierSet(about["requires-python"])
    run = " ".join(rest for word, rest in instructions() if word == "RUN")
    assert 'TORCH_INDEX="${TORCH_INDEX}"' in run and "bash scripts/setup.sh" in run
    for line in re.findall(r"pip install[^&]*", run):
        assert "--no-deps" in line, line
    env = next(rest for word, rest in instructions() if word == "ENV")
    kept = dict(pair.split("=", 1) for pair in env.split())["PIP_CONSTRAINT"]
    assert ("requirements.lock", "/opt/reflow/") in copied()
    assert kept == "/opt/reflow/requirements.lock"
    pins = (SOURCE / "requirements.lock").read_text().splitlines()
    assert any(re.fullmatch(r"torch==[\d.]+", pin) for pin in pins)


def test_the_development_container_makes_the_environment_of_the_makefile():
    text = (SOURCE / ".devcontainer/devcontainer.json").read_text()
    found = json.loads(text)
    target = found["postCreateCommand"].removeprefix("make ")
    assert re.search(rf"^{target}:", (SOURCE / "Makefile").read_text(), re.MULTILINE)
    assert "python:3.11" in found["image"] and found["remoteUser"] != "root"
    from flows.servers.serve import MLFLOW_PORT, PREFECT_PORT

    assert found["forwardPorts"] == [PREFECT_PORT, MLFLOW_PORT]
    assert "/.venv/bin" in found["remoteEnv"]["PATH"]
