"""Partitioners: each deals the KV tiles of a grid to CTAs, in a file of its own.

Imports schedule and below.
Begin with registry.py says what a partitioner is and finds them; flash_decoding.py is a short one.
"""
