"""How a workload is cut into tiles, and which CTA does which; `partitioners` decide it.

Imports specs and below.
Begin with tiling.py, which cuts; schedule.py is what every partitioner makes and everything else reads.
"""
