"""Runs schedules on a GPU: Triton kernels that take a `Schedule` as data, measured and checked.

Needs the extra `gpu` (PyTorch, Triton) only where something runs: every module but `kernels` and
`micro_kernels` imports without it. Nothing here changes a device's clocks or settings.
"""
