"""What launchers say of a process, read in one place: all of it, or one line that names what is wrong."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess

import pytest
import torch
from torch.distributed import TCPStore

from elsa.core import ConfigError, TrainingError
from elsa.engine import distributed
from elsa.engine.launcher import Place, first_node, forbid_restarts, join_slurm, read_place, starts
from elsa.tools.tasks import rendezvous

MEETING = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


def test_a_place_is_told_whole_or_not_at_all():
    assert read_place({**MEETING, "PATH": ""}) == Place(0, 1, None)
    assert read_place({"RANK": "0", "WORLD_SIZE": "1"}) == Place(0, 1, None)
    assert read_place({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", **MEETING}) == Place(3, 4, 1)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"WORLD_SIZE": "2"}, "RANK is not set, but WORLD_SIZE is"),
        ({"RANK": "0"}, "WORLD_SIZE is not set, but RANK is"),
        ({"LOCAL_RANK": "0"}, "WORLD_SIZE is not set, but LOCAL_RANK is"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "MASTER_ADDR is not set"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "a"}, "MASTER_PORT is not set"),
        ({"RANK": "0", "WORLD_SIZE": "2", **MEETING, "MASTER_ADDR": " "}, "MASTER_ADDR is empty"),
        ({"RANK": "0", "WORLD_SIZE": "2", **MEETING, "MASTER_PORT": "70000"}, "MASTER_PORT is 70000, it must be 1 to"),
        ({"RANK": "0", "WORLD_SIZE": ""}, "WORLD_SIZE is empty"),
        ({"RANK": "", "WORLD_SIZE": "1"}, "RANK is empty"),
        ({"RANK": "0", "WORLD_SIZE": "0"}, "WORLD_SIZE is 0, it must be at least 1"),
        ({"RANK": "2", "WORLD_SIZE": "2", **MEETING}, "RANK is 2 of WORLD_SIZE 2, it must be 0 to 1"),
        ({"RANK": "-1", "WORLD_SIZE": "2", **MEETING}, "RANK is '-1', no whole number"),
        ({"RANK": "one", "WORLD_SIZE": "2", **MEETING}, "RANK is 'one', no whole number"),
        ({"RANK": "²", "WORLD_SIZE": "2", **MEETING}, "RANK is '²', no whole number"),
        ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "2", **MEETING}, "LOCAL_RANK is 2 of WORLD_SIZE 2"),
    ],
)
def test_what_is_wrong_is_named(given, said):
    with pytest.raises(ConfigError) as told:
        read_place(given)
    assert str(told.value).startswith(said)
    assert "torchrun" in str(told.value)


@pytest.mark.parametrize(
    ("environment", "device", "said"),
    [
        ({"LOCAL_RANK": "2"}, "auto", "LOCAL_RANK 2 asks for GPU 2; 2 are visible"),
        ({}, "auto", "LOCAL_RANK is not set, and 2 GPUs are visible"),
        ({}, "cuda:5", "--device cuda:5 asks for GPU 5; 2 are visible"),
    ],
)
def test_a_local_rank_beyond_the_gpus(environment, device, said, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name, value in {"RANK": "2", "WORLD_SIZE": "4", **MEETING, **environment}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError) as told, distributed(device):
        pass
    assert str(told.value).startswith(said)


TASK = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "1", "SLURM_PROCID": "3", "SLURM_NTASKS": "4", "SLURM_LOCALID": "1"}
NODES = {"SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NODELIST": "localhost,gpu[08-11]"}


def test_a_task_of_a_slurm_step_is_a_process_of_the_run():
    joined = {**TASK, **NODES}
    join_slurm(joined)
    assert read_place(joined) == Place(3, 4, 1)
    assert joined["MASTER_ADDR"] == "localhost"
    others = [{**TASK, **NODES, "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}, {**TASK, **NODES, "SLURM_STEP_ID": "2"}]
    for other in others:
        join_slurm(other)
    assert others[0]["MASTER_PORT"] == joined["MASTER_PORT"] != others[1]["MASTER_PORT"]
    alone = dict(TASK)
    join_slurm(alone)
    assert alone["MASTER_ADDR"] == "127.0.0.1", "a step on one node"
    elsewhere = {
        **TASK,
        **NODES,
        "SLURM_STEP_NODELIST": "no.such.node.invalid",
        "SLURM_LAUNCH_NODE_IPADDR": "127.0.0.2",
    }
    join_slurm(elsewhere)
    assert elsewhere["MASTER_ADDR"] == "127.0.0.2"
    own = {**TASK, **NODES, **MEETING}
    join_slurm(own)
    assert {name: own[name] for name in MEETING} == MEETING


@pytest.mark.parametrize(
    "not_of_a_step",
    [
        {"SLURM_STEP_ID": ""},  # a batch script
        {"SLURM_STEP_ID": "batch"},
        {"SLURM_STEP_ID": "4294967290"},  # the shell of salloc
        {"SLURM_STEP_NUM_TASKS": "1"},
        {"RANK": "0", "WORLD_SIZE": "1"},  # torchrun, or the wish to be alone
    ],
)
def test_python_started_once_is_alone(not_of_a_step):
    environment = {**TASK, **not_of_a_step}
    join_slurm(environment)
    assert environment == {**TASK, **not_of_a_step}
    assert read_place(environment).world_size == 1


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"SLURM_PROCID": "4"}, "SLURM_PROCID is '4'"),
        ({"SLURM_LOCALID": ""}, "SLURM_LOCALID is ''"),
        ({"SLURM_NTASKS": "many"}, "SLURM_NTASKS is 'many'"),
        ({"WORLD_SIZE": "8"}, "WORLD_SIZE is 8, but SLURM_NTASKS is 4"),
        ({**NODES, "SLURM_STEP_NODELIST": "no.such.node.invalid"}, "the first of SLURM_STEP_NODELIST"),
    ],
)
def test_a_step_that_does_not_fit(given, said):
    with pytest.raises(ConfigError) as told:
        join_slurm({**TASK, **given})
    assert str(told.value).startswith(said)


def test_the_first_of_slurms_nodes():
    names = ["node1", "gpu[08-11,14]", "a[3,5]-ib,b1", "r1,r[2-3]", "x[001-100]y[7-9]", ""]
    assert [first_node(name) for name in names] == ["node1", "gpu08", "a3-ib", "r1", "x001y7", ""]


def test_a_mistake_is_not_started_again(monkeypatch):
    sent = []
    monkeypatch.setattr(os, "kill", lambda *what: sent.append(what))
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "0")
    forbid_restarts()
    assert sent == []
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    forbid_restarts()
    assert sent == [(os.getppid(), 15)]
    monkeypatch.setenv("TORCHELASTIC_SIGNALS_TO_HANDLE", "SIGQUIT")  # of the scripts' agent: it knows exit code 2
    forbid_restarts()
    assert len(sent) == 1


def test_a_job_that_slurm_starts_again_is_started_again(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "2")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert starts() == 3
    monkeypatch.delenv("TORCHELASTIC_RESTART_COUNT")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "")
    assert starts() == 0


# ---- the scripts -----------------------------------------------------------------------------------------------------


@pytest.fixture
def script(root, tmp_path):
    """``script("train_node.sh", *arguments, NAME=value)``: what Python is given, with eight GPUs in the machine."""
    bin = tmp_path / "bin"
    bin.mkdir()
    stubs = {"nvidia-smi": "for i in 0 1 2 3 4 5 6 7; do echo GPU $i; echo '  MIG 1g'; done", "python": 'echo "$@"'}
    for name, text in stubs.items():
        (bin / name).write_text(f"#!/bin/sh\n{text}\n")
        (bin / name).chmod(0o755)

    def call(name: str, *arguments: str, without: str = "", **environment: str) -> subprocess.CompletedProcess:
        (bin / without).unlink() if without else None
        kept = {key: value for key, value in os.environ.items() if key not in ("CUDA_VISIBLE_DEVICES", "GPUS")}
        kept |= {"PATH": f"{bin}:{os.environ['PATH']}", **environment}
        line = ["bash", str(root / "scripts" / name), *arguments]
        return subprocess.run(line, env=kept, cwd=tmp_path, capture_output=True, text=True, timeout=60)

    return call


@pytest.mark.parametrize(
    ("environment", "count"),
    [
        ({}, 8),
        ({"CUDA_VISIBLE_DEVICES": "0,1"}, 2),
        ({"CUDA_VISIBLE_DEVICES": "GPU-3a, MIG-5b-1-0 ,MIG-6"}, 3),
        ({"CUDA_VISIBLE_DEVICES": "2,-1,3"}, 1),
        ({"CUDA_VISIBLE_DEVICES": ""}, 1),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, 1),
        ({"CUDA_VISIBLE_DEVICES": "0,1", "GPUS": "5"}, 5),
        ({"without": "nvidia-smi"}, 1),
    ],
)
def test_a_node_starts_as_many_processes_as_the_job_sees_gpus(script, environment, count):
    done = script("train_node.sh", "c.yaml", "--output", "x", **environment)
    assert f"--nproc-per-node={count} " in done.stdout, done.stderr
    blind = environment.get("CUDA_VISIBLE_DEVICES") in ("", "-1") or "without" in environment
    assert ("no GPU is visible: one process on the CPU" in done.stderr) == blind


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("GPUS", "all", "GPUS must be a number from 1 on, got 'all'"),
        ("GPUS", "0", "GPUS must be a number from 1 on, got '0'"),
        ("RESTARTS", "-1", "RESTARTS must be a number from 0 on, got '-1'"),
        ("SHUTDOWN_TIMEOUT", "1.5", "SHUTDOWN_TIMEOUT must be a number from 1 on, got '1.5'"),
        ("NODES", "two", "NODES must be a number from 1 on, got 'two'"),
        ("PORT", "29500x", "PORT must be a number from 1 to 65535, got '29500x'"),
        ("PORT", "70000", "PORT must be a number from 1 to 65535, got '70000'"),
    ],
)
def test_a_variable_that_is_no_number_is_refused(script, name, value, said):
    both = ("train_node.sh", "train_nodes.sh") if name not in ("NODES", "PORT") else ("train_nodes.sh",)
    for launcher in both:
        variables = {"HEAD": "localhost", "NODES": "1", name: value}
        done = script(launcher, "c.yaml", "--output", "x", **variables)
        assert (done.returncode, done.stdout, done.stderr) == (2, "", f"error: {said}\n")


@pytest.mark.parametrize("name", ["train_node.sh", "train_nodes.sh"])
def test_what_the_user_says_of_a_run_that_is_there_wins(script, name):
    for own in ([], ["--resume", "old/last.pt"], ["--resume=old"], ["--overwrite"]):
        done = script(name, "c.yaml", "--output", "x", *own, HEAD="localhost", NODES="1")
        given = done.stdout.split("train.py")[1].split()
        assert given == ["c.yaml", "--output", "x", *(own or ["--resume", "auto"])]


@pytest.mark.parametrize("name", ["train_node.sh", "train_nodes.sh"])
def test_how_long_a_save_may_take_and_where_the_logs_go(script, tmp_path, name):
    job = {"HEAD": "localhost", "NODES": "1"}
    done = script(name, "c.yaml", "--output=runs/a/", **job).stdout
    assert {"--shutdown-timeout=600", "--max-restarts=3", "--tee=3"} <= set(done.split())
    assert f"--log-dir={tmp_path}/runs/a/logs/" in done
    done = script(name, "c.yaml", "--output", "/b", SHUTDOWN_TIMEOUT="60", RESTARTS="0", **job).stdout
    assert {"--shutdown-timeout=60", "--max-restarts=0"} <= set(done.split())
    assert "--log-dir=/b/logs/" in done


def test_what_needs_no_processes_is_done_by_one(script, root):
    """To print the recipe, or the error that there is no --output, eight times would be no help."""
    for arguments in (["c.yaml"], ["c.yaml", "--print-config", "--output", "x"], ["--help"]):
        done = script("train_node.sh", *arguments).stdout.split()
        assert done == [f"{root}/scripts/../tools/train.py", *arguments]


def test_jobs_of_one_head_have_ids_and_ports_of_their_own(script, tmp_path):
    def meeting(*arguments: str, **environment: str) -> set[str]:
        done = script("train_nodes.sh", "c.yaml", *arguments, HEAD="localhost", NODES="2", **environment)
        return {word for word in done.stdout.split() if word.startswith("--rdzv-")}

    one = meeting("--output", "runs/a")
    assert meeting(f"--output={tmp_path}/runs/a/", "--set", "A=1") == one, "on all nodes of a job"
    assert len(meeting("--output", "runs/b") & one) == 1, "but for the backend"
    chosen = meeting("--output", "runs/a", PORT="4711", RDZV_ID="mine")
    assert {"--rdzv-id=mine", "--rdzv-endpoint=localhost:4711"} <= chosen


def test_a_node_finds_its_job_and_refuses_the_port_of_another(monkeypatch):
    monkeypatch.setattr(rendezvous, "SECONDS", 1.0)
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    store.set("torch.rendezvous.one", "")
    place = f"127.0.0.1:{store.port}"
    assert not rendezvous.meet(place, "one", "2"), "a second node of the job: the store is there"
    for job, nodes in (("another", "2"), ("one", "1")):
        with pytest.raises(ConfigError, match=rf"^PORT {store.port} of HEAD 127.0.0.1 is taken.*PORT=n gives"):
            rendezvous.meet(place, job, nodes)


def test_the_first_node_begins_and_the_others_wait_for_it(monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert rendezvous.meet(f"127.0.0.1:{port}", "one", "2")
    monkeypatch.setattr(rendezvous, "PATIENCE", 0.0)
    monkeypatch.setattr(rendezvous, "_listens", lambda head, port: False)
    with pytest.raises(TrainingError, match=r"^HEAD 192.0.2.1 has not answered at PORT 4711 for 0 minutes"):
        rendezvous.meet("192.0.2.1:4711", "one", "2")  # an address that nobody has
    with pytest.raises(ConfigError, match=r"^HEAD 'no.such.node.invalid' cannot be found"):
        rendezvous.meet("no.such.node.invalid:4711", "one", "2")


def test_the_scripts_are_sound_shell(root):
    for path in sorted((root / "scripts").glob("*.sh")):
        subprocess.run([shutil.which("bash"), "-n", path], check=True)
