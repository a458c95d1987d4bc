"""The command line: each verb parses, calls its Python twin, and prints.

Imports everything.
Begin with main.py.
"""
