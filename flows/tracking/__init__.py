"""MLflow as a projection of dvc.lock and the receipts; the only room that imports mlflow."""
