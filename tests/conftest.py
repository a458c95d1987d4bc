"""What every test runs under.

One thread for linear algebra: matrices here are small, and threads that share a busy core spin.
Properties are tried on the same examples each time, so that what passes once passes again;
`pytest --hypothesis-profile=search` draws others.
"""

import os

# Before anything imports NumPy. Processes that tests start inherit it.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from hypothesis import settings

settings.register_profile("search", settings.get_profile("default"), derandomize=False)
settings.register_profile("same", settings.get_profile("default"), derandomize=True)
settings.load_profile("same")
