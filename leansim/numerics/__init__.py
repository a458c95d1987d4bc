"""Whether a schedule's arithmetic is exact: replayed in NumPy against reference attention.

Imports partitioners and below, but nothing of timing.
Begin with attention.py, which replays a schedule; verify.py says whether it may be believed.
"""
