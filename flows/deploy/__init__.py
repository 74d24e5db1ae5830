"""Runs from the Prefect UI and on a schedule: registration, flow, order, worktree."""
