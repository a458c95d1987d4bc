"""Runs schedules on a real GPU, checks and clocks them; `timing` models, `silicon` compares the two.

Imports silicon and below; torch and triton only where something runs, so that all but `kernels` and
`micro_kernels` load without them. Nothing here changes a device's clocks or settings.
Begin with measure.py, the verb; kernels.py is what runs, campaign.py says which points are measured.
"""
