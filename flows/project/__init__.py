"""A project's folder, environment, locks, processes, git; imports no other package of flows."""
