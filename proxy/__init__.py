"""sockpair: a layer-4 forwarding proxy that keeps a table of its socket pairs.

The folders below are layers with one direction of imports, proved by a test::

    core  <-  config  <-  engine  <-  control, observe  <-  cli

* ``core`` decides and counts: pure, no sockets, no clock, no async.
* ``config`` turns TOML into frozen, validated objects.
* ``engine`` moves bytes: the pump, stream flows, datagram flows.
* ``control`` runs the house: listening sockets, signals, life and end.
* ``observe`` tells: metrics, the admin API, logs.
* ``cli`` is the command.
"""

__version__ = "0.1.0"
