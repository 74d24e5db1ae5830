"""params.schema.json: lets editors complete and check parameter files while a person types.

It checks less than `reflow plan`, which also checks references between sections.
"""

import json
from typing import Any, get_type_hints

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from flows.params.fields import accepts, descriptions, names_of
from flows.params.load import INDEPENDENT, NAME, SCRATCH, Params

FILE = "params.schema.json"
DRAFT = "http://json-schema.org/draft-07/schema#"  # what yaml-language-server reads best
TAKEN = {"rounds": SCRATCH, "couplings": INDEPENDENT}


def schema() -> dict[str, Any]:
    """Return the JSON schema of a parameter file."""
    whole = Params.model_json_schema(schema_generator=_Described)
    for section, taken in TAKEN.items():
        names = {"pattern": f"^{NAME.pattern}$", "not": {"const": taken}}
        whole["properties"][section]["propertyNames"] = names
    return {"$schema": DRAFT, **whole, "title": "params.yaml of a reflow chain"}


class _Described(GenerateJsonSchema):
    """Pydantic's schema with the descriptions of fields, and the short forms that they accept."""

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        found = super().model_schema(schema)
        cls: type[BaseModel] = schema["cls"]
        said, hints = descriptions(cls), get_type_hints(cls, include_extras=True)
        hints |= {info.alias: hints[n] for n, info in cls.model_fields.items() if info.alias}
        for name, node in found.get("properties", {}).items():
            node["description"] = said[name]
            _shorten(node, hints[name])
        return found

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False  # "Lr" says no more than lr

    def encode_default(self, dft: Any) -> Any:
        if isinstance(dft, BaseModel):
            named = {"name": dft.name} if hasattr(dft, "name") else {}
            return {**named, **dft.model_dump(mode="json", exclude_unset=True)}
        return super().encode_default(dft)


def _shorten(node: dict[str, Any], hint: Any) -> None:
    """Require `name` in sections that it selects from, unless the settings class has a default.

    If a name alone may replace its section, the schema accepts that too.
    """
    inner = next((n for n in [node, *node.get("anyOf", ())] if "discriminator" in n), None)
    if inner is None:
        return
    key = inner.pop("discriminator")[
        "propertyName"
    ]  # OpenAPI's word; the constant names say the same
    chosen: dict[str, Any] = {"oneOf": inner.pop("oneOf")}
    if not accepts(hint, {}):
        chosen["required"] = [key]
    short = [name for name in names_of(hint) if accepts(hint, name)]
    if short:
        inner["anyOf"] = [{"enum": short}, chosen]
    else:
        inner |= chosen


if __name__ == "__main__":
    print(json.dumps(schema(), indent=1))
