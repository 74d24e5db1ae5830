"""Orchestration: the only package that imports Prefect, MLflow, DVC and YAML."""
