"""`python -m flows.cli` is the command `reflow`."""

from flows.cli.main import main

main()
