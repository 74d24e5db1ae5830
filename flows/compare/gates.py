"""What gates say of a chain, each gate of a round once."""

from dataclasses import dataclass

from fmcore.verdict.comparison import Judged
from fmcore.verdict.gates import State

ORDER: tuple[State, ...] = ("fail", "warn", "undecided")


@dataclass(frozen=True)
class Said:
    """The stages in which a gate has a state, and its message in the first of them."""

    state: State
    stages: list[str]
    says: str

    @property
    def text(self) -> str:
        """One line: the state, the stages and the message."""
        return f"{self.state}: {', '.join(self.stages)}: {self.says}"


def told(gates: list[Judged]) -> list[Said]:
    """Return what gates say that are not ok, the worst first.

    A round's training and its evaluation may measure the same thing: that is said once.
    """
    found: dict[tuple[State, str, str], Said] = {}
    for judged in gates:
        verdict = judged.verdict
        key = (verdict.state, judged.stage.partition("@")[2], verdict.gate)
        if verdict.state not in ORDER:
            continue
        if key in found:
            found[key].stages.append(judged.stage)
        else:
            found[key] = Said(verdict.state, [judged.stage], verdict.says)
    return sorted(found.values(), key=lambda one: ORDER.index(one.state))
