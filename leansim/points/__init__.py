"""A question in names and numbers, and its answer.

Imports results and below.
Begin with point.py resolves names to a schedule; simulate.py runs it; grid.py makes many of a YAML
file.
"""
