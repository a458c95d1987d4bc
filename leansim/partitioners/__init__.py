"""Partitioners: each deals KV tiles to CTAs, in a file of its own.

Imports schedule and below.
Begin with registry.py, which says what a partitioner is and finds them; flash_decoding.py is short.
"""
