"""How long a process waits for the first one of its run."""

import socket
import threading
import time

import pytest

from elsa.engine.distributed import _await_store


def test_a_process_that_never_comes_is_waited_for_once():
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # taken, and nobody listens
        began = time.monotonic()
        with pytest.raises(TimeoutError, match="nobody has listened there for 1 s"):
            _await_store("127.0.0.1", closed.getsockname()[1], 1.0)
        assert 1.0 <= time.monotonic() - began < 30


def test_a_process_that_comes_later_is_met():
    with socket.socket() as late:
        late.bind(("127.0.0.1", 0))
        threading.Timer(0.5, late.listen).start()
        _await_store("127.0.0.1", late.getsockname()[1], 60.0)
        late.accept()[0].close()  # it was called
