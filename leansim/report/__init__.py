"""Text, figures and files for people, made of what the other packages return.

Imports everything but cli and gpu.
Begin with text.py renders rows; figures.py draws; each other file is one report.
"""
