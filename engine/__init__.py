"""The model side of kvgate: every tensor of the project.

For: turning token ids into the next token, for many requests at once, and never computing the same
prefix twice. `python -m engine` serves it over HTTP with OpenAI's routes.

Not: it never hears of tenants, headers or plans. It hears a salt (who may share KV), a retention
(priority and seconds) and a lane (who goes first). Of this project it imports `policies.eviction` alone.

Read in this order: `request` (the words), `engine` (the step, on one screen), `scheduler` (who runs),
`lanes`, `spans`, `sharing`, `speculation` over `drafts`, `kv/blocks` and `kv/prefix` (what is kept and
reused), then the model: `batch`, `runner`, `models/network`, `sampler`; last the rim: `service` (a call from body to deltas), `api`, `answers`,
`server`, `config`, `loading`, `process`, `shards` (one model on several ranks), `plan`.

Importing this package, or any module marked torch-free, does not import torch.

Shape letters, used in comments as `# (T, H, D)` where a shape is made or changed:

    S  sequences in the batch       H  attention heads      L  layers
    T  tokens (rows) in the batch   K  key-value heads      N  blocks in the pool
    V  vocabulary                   D  head dimension       P  tokens per block
    C  latent, R  rotary dimension (multi-head latent attention)
    M  rows of a tile with its padding
"""
