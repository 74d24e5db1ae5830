"""The stages of a tiny chain, and what is asked of each after a fault."""

from dataclasses import dataclass

PARAMS = """
seed: 0
compute: {device: cpu, threads: 1}
data: {name: gaussian, mean: [0.1, -0.1], std: [1.0, 1.0], samples: 60}
network: {width: 8, depth: 1, time_features: 4}
yardstick: {features: {kind: identity}, samples: 16, splits: 2}
evaluate: {nfe: [1, 2], solver: {name: heun, steps: 2}, trajectories: 8}
gates: {}
rounds:
  rf1:
    coupling: independent
    init: scratch
    train: {steps: 6, batch: 8, lr: 1.0e-2, warmup: 1, log_every: 1, checkpoint_every: 2}
couplings:
  rf1: {round: rf1, pairs: 24, shard: 8, solver: {name: heun, steps: 2}}
"""


@dataclass(frozen=True)
class Stage:
    """The words of a stage's command, and its outputs."""

    command: str
    outs: tuple[str, ...]

    @property
    def words(self) -> list[str]:
        return self.command.split()


STAGES = {
    "prepare": Stage(
        "prepare out=couplings/independent metrics=metrics/prepare.json",
        ("couplings/independent", "metrics/prepare.json"),
    ),
    "initialise": Stage(
        "initialise data=couplings/independent out=models/scratch", ("models/scratch",)
    ),
    "calibrate": Stage("calibrate data=couplings/independent out=yardstick", ("yardstick",)),
    "train@rf1": Stage(
        "train rf1 coupling=couplings/independent init=models/scratch out=models/rf1"
        " curve=curves/train/rf1.csv metrics=metrics/train/rf1.json",
        ("models/rf1", "curves/train/rf1.csv", "metrics/train/rf1.json"),
    ),
    "couple@rf1": Stage(
        "couple rf1 model=models/rf1 data=couplings/independent out=couplings/rf1"
        " metrics=metrics/couple/rf1.json",
        ("couplings/rf1", "metrics/couple/rf1.json"),
    ),
    "shards": Stage(  # `reflow couple rf1 --shards 1:3`: its output is in the scratch folder
        "couple rf1 model=models/rf1 data=couplings/independent out=couplings/rf1"
        " metrics=metrics/couple/rf1.json",
        (),
    ),
    "evaluate@rf1": Stage(
        "evaluate rf1 model=models/rf1 data=couplings/independent coupling=couplings/independent"
        " yardstick=yardstick metrics=metrics/evaluate/rf1.json fd=curves/fd/rf1.csv"
        " straightness=curves/straightness/rf1.csv out=pictures/rf1",
        (
            "metrics/evaluate/rf1.json", "curves/fd/rf1.csv", "curves/straightness/rf1.csv",
            "pictures/rf1",
        ),
    ),
    "compare": Stage(
        "compare metrics=metrics fd=curves/fd curves=curves/straightness yardstick=yardstick"
        " out=comparison",
        ("comparison",),
    ),
}  # fmt: skip
"""In the order of the chain; the path `shards` is made by the stage itself."""

COMMANDS = ("records", "publish", "push", "deployed")
"""What writes beside the stages; `tests.faults.commands` has them."""
