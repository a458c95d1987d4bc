"""How a workload is cut into tiles, and which CTA does which of them.

Imports specs and below.
Begin with tiling.py cuts; schedule.py is what every partitioner makes and everything else reads.
"""
