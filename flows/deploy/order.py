"""The order: the parameters of a deployed run."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from flows.params.load import FILE


def _with_places(schema: dict[str, Any]) -> None:
    """Add the settings that can be overridden to the description of `overrides`, as Markdown.

    Pydantic calls this when it builds the schema; Prefect shows it in the form of the flow.
    """
    from flows.params.couplings import CouplingOf
    from flows.params.fields import descriptions
    from fmcore.evaluate import Evaluate
    from fmcore.train import Train

    lines = [schema["description"]]
    for place, cls in (
        ("rounds.<round>.train", Train),
        ("couplings.<coupling>", CouplingOf),
        ("evaluate", Evaluate),
    ):
        lines.append("")
        for name, text in descriptions(cls).items():
            lines.append(f"- `{place}.{name}`: {text.partition('. ')[0].rstrip('.')}.")
    schema["description"] = "\n".join(lines)


class Order(BaseModel):
    """A run of the chain. Prefect builds its form from these fields; empty ones change nothing."""

    model_config = ConfigDict(extra="forbid")

    rev: str = Field(default="HEAD", description="The commit, branch or tag to run.")
    params_file: str = Field(
        default=FILE,
        description="The parameter file of that commit, such as params/eight_gaussians.yaml.",
    )
    seed: int | None = Field(default=None, ge=0, description="Replaces the seed of the file.")
    rounds: list[str] | None = Field(
        default=None,
        description="Evaluate only these rounds, and run what they depend on; empty: all rounds.",
    )
    overrides: dict[str, Any] = Field(
        default_factory=dict,
        description=(
            'Values by their place in the file: `{"rounds.rf2.train.steps": 2000}`. The most common'
            " places follow; `reflow settings` and docs/settings.md describe all of them."
        ),
        json_schema_extra=_with_places,
    )

    def targets(self) -> list[str] | None:
        """Return the stages to run; None for all."""
        return None if self.rounds is None else [f"evaluate@{name}" for name in self.rounds]
