"""Every command that lists something prints JSON that parses; none is left out of this test."""

import json

import pytest
from typer.testing import CliRunner

from flows.cli import library
from flows.cli.main import app
from tests import tiny_chain
from tests.conftest import Project

LISTINGS = {
    "plan": [], "compare": [], "couplings": ["--offline"], "settings": ["lr"], "estimate": [],
    "verify": [], "doctor": [], "couple": ["rf1"], "publish": [], "env": [],
    "watch": [], "docs": [],
}  # fmt: skip
"""The commands that list something, each with the words that it needs here."""

ACTIONS = {
    "run", "replicate", "ship", "push", "sample", "use", "ui", "deploy", "demo", "init", "new",
    "upgrade", "export", "push-hub", "pull-hub",
}  # fmt: skip
"""The commands that do something and say so in a line or two."""


def names(of=app):
    own = {c.name or c.callback.__name__.replace("_", "-") for c in of.registered_commands}
    return own | {group.name for group in of.registered_groups}


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    with tiny_chain.in_this_process(tmp_path_factory.mktemp("listings")) as project:
        yield project


def test_every_command_lists_or_acts():
    assert names() == LISTINGS.keys() | ACTIONS
    assert names(library.app) == {"get"}


@pytest.mark.slow
@pytest.mark.parametrize("command", [name for name in LISTINGS if name != "publish"])
def test_a_listing_prints_json_that_parses(chain: Project, command):
    done = CliRunner().invoke(app, [command, *LISTINGS[command], "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found and isinstance(found, dict | list)
    if command == "couple":
        assert found["shards"] == 3 and found["coupling"] == "rf1"
    if command == "verify":
        assert found["whole"] and found["files"] > 20 and not found["faults"]


@pytest.mark.slow
def test_what_was_published_is_json_too(chain: Project):
    """As a process: MLflow keeps state in the one that imports it."""
    done = chain.sh("python", "-W", "ignore", "-m", "flows.cli", "publish", "--json")
    assert "train@rf1" in json.loads(done.stdout)["logged"]


@pytest.mark.slow
def test_damage_is_listed_as_json_and_by_the_exit_status(chain: Project):
    file = chain.root / "pictures" / "rf1" / "samples.png"
    whole = file.read_bytes()
    try:
        file.unlink()  # not written in place: the cache may share its bytes
        file.write_bytes(whole[:-1])
        done = CliRunner().invoke(app, ["verify", "--no-cache", "--json"])
        (fault,) = json.loads(done.stdout)["faults"]
        assert done.exit_code == 1 and fault["file"] == "pictures/rf1/samples.png"
    finally:
        file.write_bytes(whole)
    healed = CliRunner().invoke(app, ["verify", "--heal", "--json"])
    assert healed.exit_code == 2 and "one at a time" in healed.stderr


@pytest.mark.slow
def test_a_coupling_is_verified_as_json_and_shards_are_not_sampled_as_json(chain: Project):
    done = CliRunner().invoke(app, ["verify", "couplings/rf1", "--json"])
    assert json.loads(done.stdout) == {
        "folder": "couplings/rf1", "whole": True, "pairs": 100, "kind": "generated",
    }  # fmt: skip
    done = CliRunner().invoke(app, ["couple", "rf1", "--shards", "0", "--json"])
    assert done.exit_code == 2 and "--json is for the list" in done.stderr
