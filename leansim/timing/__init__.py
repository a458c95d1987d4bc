"""What a schedule costs on a device: Schedule to Program; and the floors below every schedule.

Imports schedule and below, engine, but no partitioner.
Begin with lowering.py goes through a schedule from its first launch to its last write.
"""
