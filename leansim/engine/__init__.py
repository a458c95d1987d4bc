"""What happens when a program runs: two engines that agree to the picosecond.

Nothing here knows what attention is.
Imports errors, arrays.
Begin with program.py, which is what runs; result.py is what comes of it, execute.py chooses the engine.
"""
