"""Tables that only the command line shows."""

from collections.abc import Sequence

from rich.table import Table

from flows.dag import plan


def plan_table(planned: Sequence[plan.Planned]) -> Table:
    """Lay out a plan: stage, what happens, why."""
    table = Table(box=None, pad_edge=False)
    for column in ("stage", "state", "why"):
        table.add_column(column)
    colours = {"run": "yellow", "downstream": "yellow", "unchanged": "green"}
    for item in planned:
        colour = colours.get(item.state, "")
        state = f"[{colour}]{item.state}[/]" if colour else item.state
        table.add_row(item.stage, state, "\n".join(item.reasons))
    return table
