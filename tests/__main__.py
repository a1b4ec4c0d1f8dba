"""``python -m tests``: every check of the house, in the order in which they fail fastest."""

import subprocess
import sys
import time

CHECKS = (
    ("ruff", "check", "."),
    ("ruff", "format", "--check", "."),
    ("mypy",),
    ("pytest", "tests/policies", "--cov=policies", "--cov-branch", "--cov-fail-under=100", "-q"),
    ("pytest", "--ignore=tests/policies", "-q", "--durations=10"),
)


def main() -> int:
    """Run each check, stop at the first that fails, and say how long each took."""
    for module, *arguments in CHECKS:
        began = time.monotonic()
        print(f"$ {module} {' '.join(arguments)}", flush=True)
        status = subprocess.call([sys.executable, "-m", module, *arguments])
        print(f"  exit {status} after {time.monotonic() - began:.1f} s", flush=True)
        if status:
            return status
    return 0


if __name__ == "__main__":
    sys.exit(main())
