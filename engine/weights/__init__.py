"""From model files to a model in memory.

For: a `.gguf` file (`gguf`) or a folder with config.json, *.safetensors and tokenizer.json
(`safetensors`), both brought to one set of tensor names (`names`) and one model (`load`); `linear` keeps
a layer's weights in the fastest layout; `fetch` brings the default model onto the machine.

Not: it does not convert, quantise or write weights, and it knows no network but the Llama family.

Read in this order: `load`, `names`, `gguf`, `safetensors`, `linear`, `fetch`. This package's page imports
no torch: `from engine.weights.load import load`.
"""
