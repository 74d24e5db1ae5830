"""Folders of strangers: nothing in a manifest, config or description leads out of its folder."""

import json

import pytest

from flows.dag.description import read_file
from fmcore.coupling.manifest import MANIFEST
from fmcore.coupling.read import open_coupling
from fmcore.coupling.write import SCHEMA_VERSION
from fmcore.network.store import load
from fmcore.settings import ReflowError


@pytest.mark.parametrize("name", ["../a.parquet", "/etc/passwd", "a/../../b", "..", "", 5, None])
def test_a_shard_outside_of_the_coupling_is_refused(tmp_path, name):
    about = {"about": {"schema_version": SCHEMA_VERSION}, "shards": [{"file": name}]}
    (tmp_path / MANIFEST).write_text(json.dumps(about))
    with pytest.raises(ReflowError) as error:
        open_coupling(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("path", ["os:system", "../evil:Network", "/tmp/evil:Network"])
def test_the_config_of_a_model_starts_no_code(tmp_path, path):
    own = {"name": "custom", "path": path, "settings": {"command": f"touch {tmp_path}/stolen"}}
    for place in ("network", "interpolant"):
        config = {"network": {"name": "mlp"}, "shape": [2], "convention": "data at t=0"}
        (tmp_path / "config.json").write_text(json.dumps({**config, place: own}))
        with pytest.raises(ReflowError):
            load(tmp_path)
    assert not (tmp_path / "stolen").exists()


@pytest.mark.parametrize("path", ["../secret", "/etc/hostname", "a/../../secret"])
def test_a_file_outside_of_the_project_is_not_shown(tmp_path, path):
    (tmp_path / "secret").write_text("mine")
    project = tmp_path / "project"
    (project / "a").mkdir(parents=True)
    (project / "a" / "ours").write_text("ours")
    assert read_file(project, "a/ours") == b"ours"
    assert read_file(project, path) is None
