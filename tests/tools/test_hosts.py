"""Two hosts: network namespaces with a wire between them, each with its own loopback and its own launcher."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from guarantees import assert_same_run


class Host:
    """A network namespace of this machine with one address."""

    def __init__(self, number: int) -> None:
        self.name, self.wire, self.address = f"elsa{os.getpid()}-{number}", f"wire{number}", f"10.231.7.{number}"
        self.launchers: list[subprocess.Popen] = []

    def launch(self, root: Path, folder: Path, *arguments: str) -> subprocess.Popen:
        """scripts/train_nodes.sh on this host, one process; what it says goes to ``folder``."""
        environment = {
            **os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1",
            "HEAD": "10.231.7.1", "NODES": "2", "GPUS": "1", "PET_LOCAL_ADDR": self.address,
            "GLOO_SOCKET_IFNAME": self.wire, "PET_RDZV_CONF": "keep_alive_interval=1",
        }  # fmt: skip
        line = ["ip", "netns", "exec", self.name, str(root / "scripts/train_nodes.sh"), *arguments]
        with (folder / f"said.{self.wire}.{len(self.launchers)}").open("w") as said:
            self.launchers.append(subprocess.Popen(line, env=environment, stdout=said, stderr=said))
        return self.launchers[-1]

    def lose(self) -> None:
        """All its processes are gone."""
        for pid in ip("netns", "pids", self.name).split():
            os.kill(int(pid), signal.SIGKILL)
        for launcher in self.launchers:
            launcher.wait()


def ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], capture_output=True, text=True, check=True).stdout


@pytest.fixture
def hosts():
    both = (Host(1), Host(2))
    made = []
    try:
        for host in both:
            ip("netns", "add", host.name)
            made.append(host)
        one, two = (f"{host.wire} netns {host.name}" for host in both)
        ip(*f"link add {one} type veth peer name {two}".split())
        for host in both:
            ip("-n", host.name, "addr", "add", f"{host.address}/24", "dev", host.wire)
            for device in (host.wire, "lo"):
                ip("-n", host.name, "link", "set", device, "up")
        yield both
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", None) or error
        pytest.skip(f"network namespaces need the command ip, CAP_SYS_ADMIN and CAP_NET_ADMIN: {said}")
    finally:
        for host in made:
            host.lose()
            ip("netns", "del", host.name)


def test_a_host_that_is_lost_and_comes_back_changes_nothing(hosts, root, config, launch, tmp_path):
    """The job goes on from the last save, though it began with --overwrite, and ends with the weights of a run that
    nothing disturbed."""
    second = hosts[1]
    run = tmp_path / "run"
    steps = ["--set", "TRAIN.EPOCHS=8", "LOG.SAVE_STEPS=2"]
    arguments = (str(config), "--output", str(run), "--overwrite", *steps)
    one, _ = (host.launch(root, tmp_path, *arguments) for host in hosts)
    deadline = time.monotonic() + 300
    while not (run / "last.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    second.lose()
    assert not (run / "summary.json").exists()
    again = second.launch(root, tmp_path, *arguments)
    codes = [one.wait(300), again.wait(60)]
    said = (tmp_path / "said.wire1.0").read_text() + (tmp_path / "said.wire2.1").read_text()
    assert codes == [0, 0], said
    assert "resumed after step" in said
    assert "lost process" in said and "all processes start again" in said

    undisturbed = launch("none:1", "train", config, "--output", tmp_path / "undisturbed", *steps, processes=2)
    assert undisturbed.wait() == [0, 0]
    assert_same_run(tmp_path / "undisturbed", run)
