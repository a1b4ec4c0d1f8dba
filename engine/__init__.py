"""The model side of kvgate: every tensor of the project.

For: turning token ids into the next token, for many requests at once, and never computing the same
prefix twice. `python -m engine` serves it over HTTP with OpenAI's routes.

Not: it never hears of tenants, headers or plans. It hears salts (who may share KV), a retention
(priority, seconds, tiers) and a lane (who goes first). Of this project it
imports `policies.eviction` and `policies.reuse` alone.

Read in this order: `request` (the words), `engine` (the step, on one screen), `scheduler` (who runs),
`lanes`, `spans`, `sharing`, `speculation` over `drafts`, `kv/blocks`, `kv/prefix` and `kv/retention` (what
is kept and reused), then the model: `batch`, `runner`, `models/network`, `sampler`; last the rim: `service`
and `call` (from body to deltas), `api` and `wishes` (what is asked), `answers` and `receipt` (what is told),
`kv_control` (what is kept, asked and changed), `verify`, `server` and `routes_kv`, `config`, `loading`,
`process`, `shards` (one model on several ranks), `plan`.

Importing this package, or any module marked torch-free, does not import torch.

Shape letters, used in comments as `# (T, H, D)` where a shape is made or changed:

    S  sequences in the batch       H  attention heads      L  layers
    T  tokens (rows) in the batch   K  key-value heads      N  blocks in the pool
    V  vocabulary                   D  head dimension       P  tokens per block
    C  latent, R  rotary dimension (multi-head latent attention)
    M  rows of a tile with its padding
"""
