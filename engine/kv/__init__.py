"""Where keys and values live, and which of them can be used again.

For: `blocks` (who holds which block; counts only), `prefix` (which full blocks hold which tokens, and
which goes first when room is needed), `layout` (how large a block is), `cache` (the tensors themselves)
and `fp8` (rows in eight bits). The first three import no torch.

Not: who runs when. The scheduler asks for blocks and gives them back.
"""
