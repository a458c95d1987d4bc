"""One simulation: a question in names and numbers, and its answer; `sweeps` run many.

Imports results and below.
Begin with point.py, which resolves names to a schedule; simulate.py runs it; grid.py makes many of a
YAML file.
"""
