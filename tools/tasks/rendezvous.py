"""Whether a node meets its own job where it is told to: torchrun joins whatever listens there.

Two jobs on one port would share a store, and end together.
"""

from __future__ import annotations

import socket
import time
from datetime import timedelta

from torch.distributed import TCPStore

from elsa.core import ConfigError

SECONDS = 10.0  # the first node opens the port a moment before it says which job it is


def check_meeting(endpoint: str, job: str, nodes: str) -> None:
    """Raises ConfigError where another job listens at ``endpoint``, HOST:PORT, already."""
    head, _, port = endpoint.rpartition(":")
    try:
        socket.create_connection((head, int(port)), timeout=5).close()
    except OSError:  # nobody listens yet
        return
    if nodes == "1" or not is_of_job(head, int(port), job):
        raise ConfigError(
            f"PORT {port} of HEAD {head} is taken, by another job or by one of the same --output; PORT=n gives this "
            "one its own"
        )


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
