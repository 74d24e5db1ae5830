"""Orchestration: the only home of Prefect, MLflow, DVC and YAML. Each folder is a room."""
