"""Tile loops: what a KV tile takes on a CTA that has its SM to itself, a class in a file each.

Imports specs and below.
Begin with tile.py, what a loop is given and gives; pipelined.py is the loop of most kernels.
"""
