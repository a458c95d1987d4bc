"""What a schedule costs in the model, and at least, nothing measured (`gpu` does): Schedule to Program.

Imports schedule and below, engine, but no partitioner.
Begin with lowering.py, which goes through a schedule from its first launch to its last write.
"""
