"""The ground: a project's folder, environment, locks, processes, git. Knows no room above."""
