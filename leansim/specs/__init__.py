"""What is described: workloads, devices, kernels, models and the files they stand in.

Imports files and below.
Begin with workload.py, device.py and kernel.py; catalog.py finds them by name.
"""
