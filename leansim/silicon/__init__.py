"""Holds predictions against latencies already measured, and fits constants; `gpu` measures new ones.

Imports sweeps and below.
Begin with rows.py, the schema of a measured row, which published.py and own.py read; validate.py gives
errors, fit.py calibrates.
"""
