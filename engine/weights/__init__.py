"""From model files to a model in memory.

For: a `.gguf` file (`gguf`) or a folder with config.json (`config_json`), *.safetensors and tokenizer.json
(`safetensors`), both brought to one set of tensor names (`names`, `shapes`) and one network (`load`,
`build`); `linear` keeps a layer's weights in the fastest layout; `fetch` brings the default model onto the
machine.

Not: it does not convert, quantise or write weights. GGUF files hold the Llama family only.

Read in this order: `load`, `build`, `shapes`, `names`, `gguf`, `safetensors`, `config_json`, `linear`,
`fetch`. This package's page imports no torch: `from engine.weights.load import load`.
"""
