"""`python -m leansim` is the command line."""

from leansim.cli import main

main()
