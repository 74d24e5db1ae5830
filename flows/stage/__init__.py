"""What a command of dvc.yaml starts: the verbs' adapters, and the guard around them."""
