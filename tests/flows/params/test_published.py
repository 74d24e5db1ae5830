"""The settings that docs/comparing.md gives for published numbers."""

import re

from pydantic import TypeAdapter
from ruamel.yaml import YAML

from flows.params.load import Params
from fmcore.choices.solvers import sampler_name
from tests.conftest import SOURCE


def test_the_documented_settings_give_the_published_metrics():
    text = (SOURCE / "docs/comparing.md").read_text().split("## Published numbers")[1]
    given = YAML(typ="safe").load(re.search(r"```yaml\n(.*?)```", text, re.DOTALL)[1])
    fields = {name: Params.model_fields[name].annotation for name in given}
    found = {name: TypeAdapter(kind).validate_python(given[name]) for name, kind in fields.items()}
    protocol = found["yardstick"].protocol
    for metric in ("fid", "sfid", "is", "kid"):
        assert f"`{protocol.named(metric)}`" in text
    assert protocol.named("fid") == "fid50k_train"
    assert [sampler_name(s) for s in found["evaluate"].solvers] == ["dopri5", "heun_to_euler_18"]
    assert found["data"].name == "cifar10"
