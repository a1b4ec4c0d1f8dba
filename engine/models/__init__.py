"""The networks: token rows in, logits out, keys and values into the pool.

For: the Llama family (Llama, Mistral, Qwen2, Qwen3) and DeepSeek-V2 and V3. `config` (the numbers of a
model) and `rope` (stretched positions) are torch-free; `network` (the whole), `layers` (norm, rotation),
`attention` (rows against paged keys), `llama` (grouped heads), `deepseek` (latent attention, kept as heads
or as latents), `moe` (experts), `exact` (which row counts give the same bits on this machine).

Not: no loading (`engine.weights`), no choice of who runs (`engine.scheduler`), no sampling.

Read in this order: `config`, `network`, `llama`, `layers`, `attention`, `deepseek`, `moe`, `exact`.
"""
