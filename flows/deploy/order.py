"""What a deployed run is asked for."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from flows.params.load import FILE


class Order(BaseModel):
    """A run of the chain. Prefect makes its form from these fields; empty ones change nothing."""

    model_config = ConfigDict(extra="forbid")

    rev: str = Field(default="HEAD", description="The commit, branch or tag to run.")
    params_file: str = Field(
        default=FILE, description="The parameter file: params/eight_gaussians.yaml, say."
    )
    seed: int | None = Field(default=None, ge=0, description="Replaces the seed of the file.")
    rounds: list[str] | None = Field(
        default=None, description="Evaluate these rounds alone, and what they depend on."
    )
    overrides: dict[str, Any] = Field(
        default_factory=dict,
        description='Values by their place: {"rounds.rf2.train.steps": 2000}.',
    )

    def targets(self) -> list[str] | None:
        """Return the stages to run; None for all."""
        return None if self.rounds is None else [f"evaluate@{name}" for name in self.rounds]
