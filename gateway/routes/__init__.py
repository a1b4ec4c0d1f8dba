"""HTTP shape only: read a request, hand it on, render what came back.

``completions`` is the path of a model call; ``cache`` looks at and clears the store;
``models`` and ``ops`` answer what the gateway itself knows. No rule about caching lives here.
"""
