"""Calls attention kernels of installed libraries, each through one small file: an adapter.

Imports specs, points and `leansim.gpu`; a library only where it is asked for, so all load without any.
Begin with registry.py, which says what an adapter is; running.py executes one, sheet.py lays out calls.
"""
