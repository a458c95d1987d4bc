"""Held against measurements, and fitted to them.

Imports sweeps and below.
Begin with tables.py and own.py read measured rows; validate.py gives errors; fit.py calibrates.
"""
