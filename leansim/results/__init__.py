"""What a result says: metrics, and timelines for Perfetto.

Imports engine, schedule, timing and below.
Begin with metrics.py, one pure function for each number.
"""
