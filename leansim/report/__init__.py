"""Text, figures and files for people, made of what the other packages return.

Imports everything but gpu, api and cli.
Begin with figures.py, which draws; each other file is one report. Rows become text in answers.py.
"""
