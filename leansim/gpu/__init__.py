"""Runs schedules on a GPU: Triton kernels that take a `Schedule` as data, measured and checked.

Imports silicon and below; torch and triton only where something runs, so that all but `kernels` and
`micro_kernels` load without them. Nothing here changes a device's clocks or settings.
Begin with kernels.py for what runs, campaign.py for what is measured.
"""
