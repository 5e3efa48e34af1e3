"""Flows change their process while they live: at an upgrade, and at a restart.

``succession`` is how a successor finds a worker and speaks to it; ``leaving`` is the worker that
gives its flows away, ``arriving`` the one that takes them, and ``transfer`` what goes between the
two. A flow is ``frozen`` on one side and comes to life again on the other (``revive``), the
listening sockets behind ``doors``; until all is over, ``custody`` can take everything back.
"""
