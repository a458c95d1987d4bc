"""One thread for linear algebra: matrices here are small, and threads that share a busy core spin."""

import os

# Before anything imports NumPy. Processes that tests start inherit it.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
