"""Where the nodes of a job meet: a node waits for the first one, and keeps away from another job's place.

torchrun would give the first node a minute, join whatever listens there (two jobs on one port would share a store, and
end together), and know the first node by its names alone.
"""

from __future__ import annotations

import socket
import time
from datetime import timedelta

from torch.distributed import TCPStore

from elsa.core import ConfigError, TrainingError

SECONDS = 10.0  # the first node opens the port a moment before it says which job it is
PATIENCE = 600.0  # seconds until the first node is there, as long as torchrun waits for the others


def meet(endpoint: str, job: str, nodes: str) -> bool:
    """Whether this node is to hold the store at ``endpoint``, HOST:PORT; else the store of the job is there.

    Raises:
        ConfigError: HOST is unknown, or another job listens there.
        TrainingError: nobody does within ``PATIENCE``.
    """
    head, _, port = endpoint.rpartition(":")
    ours, end = _is_here(head), time.monotonic() + PATIENCE
    while not _listens(head, int(port)):
        if ours:
            return True
        if time.monotonic() > end:
            raise TrainingError(f"HEAD {head} has not answered at PORT {port} for {PATIENCE / 60:.3g} minutes")
        time.sleep(0.5)
    if nodes == "1" or not _is_of_job(head, int(port), job):
        raise ConfigError(
            f"PORT {port} of HEAD {head} is taken, by another job or by one of the same --output; PORT=n gives this "
            "one its own"
        )
    return False


def _is_here(head: str) -> bool:
    """Whether a name or an address is of this node."""
    try:
        places = socket.getaddrinfo(head, 0, type=socket.SOCK_STREAM)
    except OSError as error:
        raise ConfigError(f"HEAD {head!r} cannot be found ({error.strerror})") from error
    for family, kind, _, _, place in places:
        with socket.socket(family, kind) as probe:
            try:
                probe.bind(place)
                return True
            except OSError:
                continue
    return False


def _listens(head: str, port: int) -> bool:
    try:
        socket.create_connection((head, port), timeout=5).close()
    except OSError:
        return False
    return True


def _is_of_job(head: str, port: int, job: str) -> bool:
    """Whether the store at ``head:port`` is that of torchrun's rendezvous ``job``."""
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
