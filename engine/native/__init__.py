"""The forward pass in one native call, for CPUs: weights in the 4 or 8 bits of their file, rows in 8.

For: decoding as fast as memory gives the weights, and prompts several times faster than dequantised
weights allow where the CPU has no matrix unit. `src/` is C, compiled at the first start by the compiler
that is there and kept in the cache folder; without one, on another machine or for another family of
models the engine runs on torch (`engine.models`), which is also the twin that the tests compare with.

One arithmetic, whatever the cache did: the products of a group of 32 are integers, exact in any order;
groups, keys and chunks of keys are added in the order of their absolute places. A row has the same bits
as a prompt or as an answer, alone or in a batch, on one thread or several. So reuse, batching and
speculation are exact here by construction and nothing needs to be measured at the start. (The bits are
others than torch's: the fingerprint says which kernels wrote a block.)

Not: no scheduling, no sampling, no latent attention, no experts, no shards.

Read in this order: `weights` (what of a file is used as it is), `src/matrix.h`, `src/attention.h`,
`src/forward.c` (the layers on one screen), `src/crew.h` (threads), then `build`, `library`, `model`,
`cache`, `crowd`, `runner`.
"""
