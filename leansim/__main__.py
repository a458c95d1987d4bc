"""`python -m leansim` is the command line."""

from leansim.cli.main import main

main()
