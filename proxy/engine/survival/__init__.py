"""Flows outlive a worker that is killed: ``survive = "crash"``.

A worker (``surviving`` streams, and datagrams that it may ``leave_behind``) keeps a ``will`` in
memory that outlives it; its ``standby`` has the same descriptors. When the worker is gone the
``executor`` reads the will, and by what the kernel counts (``reading``) proves which flows are
whole: these go on, the others are reset.
"""
