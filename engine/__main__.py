"""`python -m engine`, see `engine.process`; `python -m engine plan`, see `engine.plan`.

Imports take their time: a Ctrl-C meanwhile ends as quietly as later.
"""

import os
import signal
import sys

if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: os._exit(0))
    try:
        if sys.argv[1:2] == ["plan"]:
            from engine.plan import main as plan

            sys.exit(plan(sys.argv[2:]))
        from engine.process import main
        from engine.ranks import end_all
    except ImportError as error:
        from engine.errors import MissingExtraError

        problem = MissingExtraError.of(error)
        sys.stderr.write(f"kvgate engine: {problem}\n")
        sys.exit(problem.exit_code)

    code = main()
    end_all()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # a thread that still loads a model must not hold up the end
