"""Orchestration: parameters, stages, Prefect flow, MLflow records and the `reflow` command."""
