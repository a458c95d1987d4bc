"""Held against measurements, and fitted to them.

Imports sweeps and below.
Begin with rows.py, the schema of a measured row, which published.py and own.py read; validate.py gives
errors, fit.py calibrates.
"""
