"""Where keys and values live, and which of them can be used again.

For: `blocks` (who holds which block; counts only), `salts` and `chain` (under which key a block is found,
and by whom), `prefix` (which full blocks hold which tokens), `retention`, `quotas`, `sessions` and `keeper`
(which goes first when room is needed), `events`, `missed` and `why` (what is told of that), `layout` (how
large a block is), `cache` (the tensors themselves) and `fp8` (rows in eight bits). Only the last two import
torch.

Not: who runs when. The scheduler asks for blocks and gives them back.
"""
