"""MLflow as a projection of dvc.lock and the receipts; the only package that imports mlflow."""
