"""The Prefect and MLflow servers of a project, and flow runs whose process died."""
