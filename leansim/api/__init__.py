"""The verbs that put several parts together: a point, several, a grid or a file in; typed answers out.

Nothing is printed. A module for each verb, or for those that load the same, so that a command loads what
it runs; verbs that are one part's work are where that part is, and `leansim/__init__.pyi` lists all.
Imports gpu, report, checkout and below.
Begin with given.py, which reads what a verb is given.
"""
