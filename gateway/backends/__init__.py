"""Where answers come from: one contract (``base``) and what speaks it.

``openai`` talks to any OpenAI-compatible server, the bundled engine included; ``embedded``
starts and watches that engine as a child process. Nothing here decides about caching: a
backend is handed a finished plan.
"""
