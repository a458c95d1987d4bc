"""A whole decode step of a model: attention as simulated, and all that stands around it.

Imports points and below.
Begin with step.py, which sums a step up; kernels.py prices what is not attention, energy.py its energy.
"""
