"""The networks: token rows in, logits out, keys and values into the pool.

For: the Llama family (RMSNorm, rotary positions, grouped-query attention, SwiGLU). `config` (the numbers
of a model, torch-free), `layers` (norm, rotation), `attention` (rows against paged keys), `llama` (the
whole), `exact` (which row counts give the same bits on this machine).

Not: no loading (`engine.weights`), no choice of who runs (`engine.scheduler`), no sampling.

Read in this order: `config`, `llama`, `layers`, `attention`, `exact`.
"""
