"""How a verb ends: one line and an exit code for whatever a user can mend, on every rank."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from elsa.core import TrainingError, UserError, one_line, silence
from elsa.engine import forbid_restarts, join_slurm


def run(main: Callable[[], None]) -> None:
    """Runs a verb: a user's mistake becomes one line and exit code 2; a training that cannot go on, or a file that
    the system refuses, exit code 1."""
    try:
        join_slurm()
        main()
        sys.stdout.flush()
    except TrainingError as error:
        _fail(error, 1)
    except UserError as error:
        _fail(error, 2)
    except BrokenPipeError:  # of stdout, whose reader has seen enough: "| head"
        silence(sys.stdout)
        sys.exit(141)
    except OSError as error:
        if error.filename is None:
            raise
        _fail(f"{error.strerror}: {error.filename}", 1)
    except KeyboardInterrupt:
        _fail("interrupted", 130)


def _fail(error: object, code: int) -> None:
    rank = os.environ.get("RANK", "0")
    try:
        print(f"{'' if rank == '0' else f'[rank {rank}] '}error: {one_line(str(error))}", file=sys.stderr, flush=True)
    except OSError:  # nobody reads it
        silence(sys.stderr)
    if code == 2:
        forbid_restarts()
    sys.exit(code)
