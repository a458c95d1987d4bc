"""Text in and out, whole or not at all: strict YAML, CSV, files that are there or not.

Imports errors.
Begin with strict_yaml.py, which reads configuration and knows the place of every mistake.
"""
