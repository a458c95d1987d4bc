"""Hostile inputs for every reader: `python -m tests.fuzz` ends without traceback, hang or 2 GB.

Begin with readers.py, which says what is read; inputs.py makes the inputs, running.py tries them.
"""
