"""Where answers come from: one contract (``base``) and what speaks it.

``openai`` talks to any OpenAI-compatible server, the bundled engine included; ``embedded``
starts and watches that engine as a child process. Several that serve the same are a ``group``;
around it ``retrying`` goes on elsewhere when one fails, as far as ``health`` says who may be asked, and
``waits`` says when to stop waiting. Nothing here decides about caching: a
backend is handed a finished plan.
"""
