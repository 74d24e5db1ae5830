"""The choices of params.yaml: interpolants, laws of t, losses, solvers; built in or the user's."""
