"""What the launchers' agent makes of how processes end: restarts, signals, one line, an exit code."""

from __future__ import annotations

import io
import os
import signal
import sys
import time
from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing import tail_log
from torch.distributed.elastic.rendezvous import RendezvousConnectionError
from torch.distributed.launcher import api

from elsa.engine.launcher import starts
from elsa.tools.tasks import agent
from elsa.tools.tasks.agent import REQUESTS, Terminal, launch

# What a process of a test knows: its rank, how often it was started, and how to say something.
START = """
import os, signal, sys, time
rank, again = int(os.environ["RANK"]), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
say = lambda text: print(text, file=sys.stderr, flush=True)
"""


@pytest.fixture
def play(tmp_path, monkeypatch):
    """``play(code of both processes, *torchrun's options)``: exit code of the agent, and what the terminal shows."""
    handlers = {number: signal.getsignal(number) for number in (*REQUESTS, signal.SIGALRM, signal.SIGQUIT)}
    monkeypatch.setattr(api, "LocalElasticAgent", api.LocalElasticAgent)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def call(code: str, *options: str, standalone: bool = True) -> tuple[int, list[str]]:
        script, shown = tmp_path / "script.py", io.StringIO()
        script.write_text(START + code)
        monkeypatch.setattr(sys, "stderr", Terminal(shown))
        monkeypatch.setattr(sys, "stdout", Terminal(shown))
        standard = ["--standalone"] * standalone
        standard += ["--nproc-per-node=2", "--max-restarts=2", "--shutdown-timeout=30", "--tee=3"]
        logs = [f"--log-dir={tmp_path}/run/logs/here", "--log-line-prefix-template=[rank ${rank}] "]
        code = launch([*standard, *logs, *options, str(script)])
        sys.stderr.close_lines()
        return code, shown.getvalue().splitlines()

    yield call
    signal.alarm(0)
    for number, handler in handlers.items():
        signal.signal(number, handler)


def logs(folder: Path, attempt: int, rank: int) -> str:
    (file,) = folder.glob(f"run/logs/here/*/attempt_{attempt}/{rank}/stderr.log")
    return file.read_text()


def test_a_killed_process_has_all_start_again(play, tmp_path):
    code, said = play("""
say(f"start {again}")
if rank == 1 and not again:
    os.kill(os.getpid(), signal.SIGKILL)
if not again:
    time.sleep(60)
""")
    assert code == 0, said
    assert "process 1 of 2 was killed (SIGKILL)" in said
    assert "all processes start again, from the last save where there is one (1 of RESTARTS=2)" in said
    assert [logs(tmp_path, attempt, 1) for attempt in (0, 1)] == ["start 0\n", "start 1\n"], "each start has its logs"
    assert {"start 1", "[rank 1] start 1"} <= set(said)


def test_a_mistake_is_one_line_and_code_2_and_leaves_nothing(play, tmp_path):
    code, said = play("""
say(("" if not rank else f"[rank {rank}] ") + "error: unknown key 'LR'")
sys.exit(2)
""")
    assert code == 2
    assert [line.removeprefix("[rank 1] ") for line in said] == ["error: unknown key 'LR'"]
    assert not (tmp_path / "run").exists()


def test_what_fails_again_and_again_ends(play, tmp_path):
    code, said = play("raise RuntimeError('no memory')", "--max-restarts=1")
    assert code == 1
    assert sum("start again" in line for line in said) == 1
    assert "RuntimeError: no memory" in said or "[rank 1] RuntimeError: no memory" in said
    assert any("RuntimeError" in logs(tmp_path, 1, rank) for rank in range(2))


SAVES = """
asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
say("ready")
open(f"{sys.argv[0]}.{rank}", "w").close()
while not all(os.path.exists(f"{sys.argv[0]}.{other}") for other in range(2)):
    time.sleep(0.01)
if rank == 0:
    os.kill(os.getppid(), signal.SIGTERM)  # to the agent alone; it reaches both
while not asked:
    time.sleep(0.01)
"""


def test_a_signal_is_passed_on_and_the_save_waited_for(play):
    code, said = play(SAVES + "time.sleep(1.0)\nsay('saved')")
    assert (code, said.count("saved"), said.count("[rank 1] saved")) == (0, 1, 1)


def test_what_fails_when_asked_to_stop_is_not_started_again(play):
    code, said = play(SAVES + "time.sleep(0.3)\nsys.exit(rank)")
    assert code == 1
    assert not any("start again" in line for line in said)


def test_what_does_not_end_in_time_is_killed(play):
    code, said = play(SAVES + "time.sleep(600)", "--shutdown-timeout=1")
    assert code == 1
    assert said[-1] == "error: not ended within SHUTDOWN_TIMEOUT=1 seconds, and killed"


@pytest.mark.parametrize("pause", [0.0, 2.0], ids=["started", "being started"])
def test_a_signal_before_the_training_can_hear_it_is_told(play, tmp_path, monkeypatch, pause):
    start = tail_log.TailLog.start
    monkeypatch.setattr(tail_log.TailLog, "start", lambda self: (time.sleep(pause), start(self))[1])
    code, said = play(f"""
open(f"{tmp_path}/{{rank}}.pid", "w").write(str(os.getpid()))
if rank == 0:
    os.kill(os.getppid(), signal.SIGTERM)
time.sleep(60)
""")
    assert code == 128 + signal.SIGTERM
    assert said[-1] == "stopped before the training had begun"
    for file in tmp_path.glob("*.pid"):
        with pytest.raises(ProcessLookupError):
            os.kill(int(file.read_text()), 0)


def test_an_ignored_signal_stays_ignored(play):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup has it
    code, said = play("""
if rank == 0:
    os.kill(os.getppid(), signal.SIGHUP)
time.sleep(0.5)
say("went on")
""")
    assert (code, said.count("went on")) == (0, 1)


def test_a_folder_is_refused_before_anything_starts(play, tmp_path):
    (tmp_path / "run").touch()
    code, said = play("say('started')")
    assert (code, len(said)) == (2, 1)
    assert said[0].startswith(f"error: --output {tmp_path}/run: ")


def test_the_other_nodes_wait_for_the_first_to_come_back(play, monkeypatch):
    """What they had begun goes on then, whatever the command says of a run that is there: ``starts`` counts it."""
    calls = []

    def lost(args):
        calls.append((args.rdzv_conf, starts()))
        if len(calls) < 3:
            raise RendezvousConnectionError("the store is gone")

    monkeypatch.setenv("NODE_RESTART_COUNT", "")
    monkeypatch.setattr(agent, "meet", lambda *_: False)
    monkeypatch.setattr(agent.run, "run", lost)
    meeting = ["--rdzv-backend=c10d", "--rdzv-endpoint=node01:4711", "--rdzv-conf=keep_alive_interval=1", "--nnodes=2"]
    code, said = play("", *meeting, standalone=False)
    assert code == 0
    assert calls == [("is_host=False,keep_alive_interval=1", count) for count in range(3)]
    assert said[-1] == "the first node is lost; waiting for it (2 of RESTARTS=2)"


def test_the_first_node_does_not_wait_for_itself(play, monkeypatch):
    def lost(args):
        raise RendezvousConnectionError("the store is gone")

    monkeypatch.setattr(agent, "meet", lambda *_: True)
    monkeypatch.setattr(agent.run, "run", lost)
    meeting = ["--rdzv-backend=c10d", "--rdzv-endpoint=node01:4711", "--nnodes=2"]
    assert play("", *meeting, standalone=False) == (1, ["error: the nodes have not met: the store is gone"])


def test_lines_come_whole_with_their_rank():
    terminal = Terminal(shown := io.StringIO())
    for part in (
        "[rank 0] a",
        "[rank 1] b",
        "[rank 0] \n",
        "[rank 1] c\n",
        "[rank 1] [rank 1] d\n",
        "e\n",
        "[rank 2] f",
    ):
        terminal.write(part)
    assert shown.getvalue() == "a\n[rank 1] bc\n[rank 1] d\ne\n"
    terminal.close_lines()
    assert shown.getvalue().endswith("[rank 2] f\n")
