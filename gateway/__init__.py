"""The HTTP side of kvgate: every ``await`` of the service lives here.

It is for: taking an OpenAI request, asking ``policies`` what should happen, answering
from the response store when it may, flying one piece of work per key otherwise, and
saying in headers, logs and metrics what became of the call.

It is not: a place for decisions (they are pure functions in ``policies``), and not a
place for tensors (the bundled engine is one more HTTP backend; nothing here imports it).

Read in this order: ``pipeline`` (one call from plan to outcome), ``flights`` (one piece
of work per key), ``chunks`` (what an answer is made of), ``headers`` and ``sse`` (how it
looks on the wire), ``store.base`` and ``backends.base`` (the two contracts), ``app``
(where everything is built once).
"""
