"""What one run says: metrics, and timelines for Perfetto; `report` writes for people.

Imports engine, schedule, timing and below.
Begin with metrics.py, one pure function for each number.
"""
