"""Whether a node meets its own job at HEAD:PORT, for scripts: python -m elsa.engine.rendezvous HEAD PORT ID.

torchrun itself joins whatever listens there: two jobs on one port would share a store, and end together.
"""

from __future__ import annotations

import sys
import time
from datetime import timedelta

from torch.distributed import TCPStore

SECONDS = 10.0  # the first node opens the port a moment before it says which job it is


def is_of_job(head: str, port: int, job: str) -> bool:
    """Whether the store at ``head:port``, where something listens, is that of torchrun's rendezvous ``job``."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        try:
            store = TCPStore(head, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=SECONDS))
            if store.check([f"torch.rendezvous.{job}"]):
                return True
        except RuntimeError:  # no store, or one that is just ending
            pass
        time.sleep(0.5)
    return False


if __name__ == "__main__":
    head, port, job = sys.argv[1:]
    if not is_of_job(head, int(port), job):
        print(
            f"error: PORT {port} of HEAD {head} is taken by another job; PORT=n gives this one its own", file=sys.stderr
        )
        sys.exit(2)
