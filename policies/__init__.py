"""What should happen: pure functions over frozen data.

For: every decision of kvgate that needs no waiting. What a request asks for, under which key
its answer lives, who may share it, how long it is fresh, whether it is kept, what is thrown out
first, and why. The gateway asks between its awaits; the engine asks for an order of eviction.

Not for: effects. Nothing here reads a clock, rolls dice, logs, opens a socket or looks at the
environment. Time (``now``, unix seconds) and chance (``draw``, in ``[0, 1)``) are arguments.
Nothing outside the standard library is imported.

Read in this order:

1. ``call``       the model request as data, and its canonical form;
                  ``json_text``  JSON text in short steps;  ``numbers``  JSON numbers that Python's own types cannot hold
2. ``keys``       who asks (Principal), who shares (Scope), and the keys made of them
3. ``rules``      the operator's wishes
4. ``directive``  the client's wishes: ``kv_cache``, ``X-Cache-*``, ``Cache-Control``
5. ``plan``       decide(call, directive, principal, rules): the one place where they meet;
                  ``retention``  tier, ttl and priority;  ``kv``  what an engine is told beside them
6. ``freshness``  may a stored answer be served;  ``admission``  may a new one be stored
7. ``outcome``    how an answer ended, what became of the call
8. ``explain``    why it was a miss, where two requests differ, the debug line
9. ``eviction``   which key goes first when room is short;  ``reuse``  the same for blocks of prompts,
                  learned from what comes back;  ``supersession``  which answer a newer one makes useless;
                  ``replay``  what a cache would have done
10. ``record``    how the large records of the hot path are made
11. ``conversation``  what a conversation is about;  ``analytics``  what its numbers recommend
12. ``embeddings``  a list of inputs taken apart, and put together again
13. ``contexts``  shared contexts: who may use one, does a call start with its text
13. ``warming``   what a wish to warm asks for;  ``embeddings``  a list of texts as texts one by one;
                  ``affinity``  which of several backends knows a prompt

A client's fault is a ``policies.call.RequestError``; there is no other exception on purpose.
"""
