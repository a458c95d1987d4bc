"""Which schedule to ship: split choices held against the best one found.

Imports sweeps and below.
Begin with oracle.py searches one point; regret.py a grid of them.
"""
