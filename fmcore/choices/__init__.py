"""What params.yaml chooses among: the kinds of the theory, and the user's own classes of each."""
