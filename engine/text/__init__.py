"""Between text and token ids, in both directions.

For: `tokenizer` (the model's own vocabulary, through the `tokenizers` library), `chat` (messages to the
prompt the model was trained on, by its jinja2 template in a sandbox), `detokenizer` (tokens to text as
they come, torch-free).

Not: no HTTP shape, no model.

Read in this order: `chat`, `tokenizer`, `detokenizer`.
"""
