"""Many points: run in parallel, stored as they finish, resumed, merged, compared.

Imports points and below.
Begin with sweep.py, which runs a grid; store.py keeps what is finished; predict.py answers a table of
points; run.py does one workload at once.
"""
