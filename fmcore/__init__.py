"""Mathematics and data of rectified flows: interpolant, solver, coupling, network, metrics.

Nouns are the modules `interpolant`, `solver`, `coupling`, `dataset`, `network`, `metrics`; verbs
are the stages of `dvc.yaml`. Nothing in here knows Prefect, MLflow or DVC.
"""
