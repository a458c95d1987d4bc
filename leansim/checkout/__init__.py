"""The experiments of a checkout: what there is, running them, and what their scripts share.

Imports files and specs: what a script simulates is the script's business.
Begin with experiments.py, which finds and reads them; running.py runs them.
"""
