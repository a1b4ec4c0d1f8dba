"""Several processes on one port: ``kvgate serve --workers N``.

::

                        ┌── socketpair ──► worker 1   HTTP, stores, pipeline ──┐
    supervisor ─────────┼── socketpair ──► worker 2                            ├─HTTP─► engine
     sockets, signals   └── socketpair ──► worker 3                            ┘          ▲
         └───────────────────────── starts and watches ───────────────────────────────────┘

The supervisor answers no request: it owns the listening sockets, the one engine and the channel to
each worker. A worker is the application of :mod:`gateway.app` as it is with one process, which
knows its colleagues through a :class:`~gateway.workers.team.Team`. With one worker none of this
runs.

What it is not: a store. Entries, leases and records that several processes share lie on disk or in
Redis; here pass only messages.

Read ``channel`` (one pipe), ``handover`` (what a worker is told), ``team`` (a worker's view),
``worker`` (the process), ``supervisor`` (its life), in this order.
"""
