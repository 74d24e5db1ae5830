"""The code that a command of dvc.yaml starts: adapters of the verbs, and the guard around them."""
