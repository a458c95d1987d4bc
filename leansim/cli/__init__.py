"""The command line: each verb parses, calls its Python twin, and prints.

Imports everything.
Begin with main.py, which has the verbs; options.py has the flags that they share.
"""
