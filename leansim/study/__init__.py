"""Which schedule to ship: split choices held against the best that search finds, in the model.

Imports sweeps and below.
Begin with oracle.py, which searches one point; regret.py searches a grid of them.
"""
