"""Where keys and values live, and which of them can be used again.

For: `blocks` (who holds which block; counts only), `salts` and `chain` (under which key a block is found,
and by whom), `prefix` (which full blocks hold which tokens), `retention`, `quotas`, `sessions` and `keeper`
(which goes first when room is needed), `events`, `missed` and `why` (what is told of that), `layout` (how
large a block is), `cache` (the tensors themselves) and `fp8` (rows in eight bits). Only the last two import
torch.

Then what is below the pool, in this order: `tiers` (the drawing, and what the scheduler calls), `descent`
and `ascent` (blocks on their way down and up), `choice` and `costs` (load, or compute again?), `stock` (memory
and disk as tiers), `shelf` (what a tier holds and what goes first), `blob` (a block as bytes, and how it is
believed), `disk` (slots and records in a file) and `opening` (from options to all that).

Not: who runs when. The scheduler asks for blocks and gives them back.
"""
