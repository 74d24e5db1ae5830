"""The choices of params.yaml: interpolants, laws of t, solvers; built in or the user's."""
