"""The floors of packages: what is installed meets them, and pyproject.toml asks for no less."""

import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from flows.cli import floors
from flows.cli.floors import FLOORS, Floor, below
from tests.conftest import SOURCE


def test_what_is_installed_is_above_the_floors():
    assert {f.package: found for f in FLOORS if (found := below(f))} == {}


@pytest.mark.parametrize("floor", FLOORS, ids=lambda f: f.package)
def test_pyproject_and_the_lock_ask_for_no_less(floor):
    asked = tomllib.loads((SOURCE / "pyproject.toml").read_text())["project"]["dependencies"]
    for one in map(Requirement, asked):
        if one.name == floor.package:
            least = [Version(s.version) for s in one.specifier if s.operator == ">="]
            assert least and least[0] >= Version(floor.least)
    lock = (SOURCE / "requirements.lock").read_text()
    (locked,) = re.findall(rf"^{floor.package}==([^\s;]+)", lock, re.M | re.I)
    assert Version(locked) >= Version(floor.least)
    assert re.fullmatch(r"CVE-\d{4}-\d+", floor.advisory)


def test_an_older_version_is_named_and_a_missing_package_is_not(monkeypatch):
    monkeypatch.setattr(floors, "version", {"a": "1.9.2"}.__getitem__)
    assert below(Floor("a", "1.10", "CVE-1", "x")) == "1.9.2"
    assert below(Floor("a", "1.9.2", "CVE-1", "x")) == ""
    monkeypatch.undo()
    assert below(Floor("no-such-package", "1", "CVE-1", "x")) == ""
