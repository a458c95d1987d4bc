"""Runs schedules on a GPU: Triton kernels that take a `Schedule` as data, measured and checked.

Imports silicon and below; torch and triton only where something runs, so that all but `kernels` and
`micro_kernels` load without them. Nothing here changes a device's clocks or settings.
Begin with measure.py, the verb; kernels.py is what runs, campaign.py which points are measured.
"""
