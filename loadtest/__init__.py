"""Load and measurements: how fast, against what, and whether it stays right under load.

It is for: a locust file that behaves like users, and two benchmarks whose figures are ratios to a
floor measured side by side in the same run. It is not: a test of the gate's result (nothing here is
timed by ``tests/``), and not part of the installed package.

Read in this order: ``README.md``, ``workloads`` (what users ask) and ``answers`` (what counts as an
answer), ``locustfile``, ``bench_gateway`` (hits and misses against bare aiohttp), ``client`` (who
asks), ``floors`` and ``mock_upstream`` (what it is compared with), ``bench_engine``, ``asking`` and
``neighbours`` (the model side), ``bench_tile``.
"""
