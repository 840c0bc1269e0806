"""Where a run writes: folders that cannot be written are refused before work, a full disk and a reader who left."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys

import pytest
import torch

from elsa.core import ConfigError, check_writable, write_then_rename


def test_folders_that_cannot_be_written_are_refused_before_work(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    refused = {
        tmp_path / ("x" * 300): "File name too long",
        tmp_path / "new" / ("ä" * 128): "a name of 256 bytes, 255 are allowed",
        tmp_path / "file": "file is a file",
        tmp_path / "file" / "run": "file is a file",
        type(tmp_path)("/proc/run"): "/proc is not writable",
    }
    for folder, said in refused.items():
        with pytest.raises(ConfigError) as told:
            check_writable(folder)
        assert str(told.value).startswith(f"--output {folder}: ")
        assert said in str(told.value)
        assert "\n" not in str(told.value)
    check_writable(tmp_path / "new" / ("ä" * 127))
    check_writable(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "loop"]


def test_a_file_that_the_system_refuses_keeps_the_one_before_and_its_reason(tmp_path):
    """torch words a full disk as an error of its format; what the system says is told, with the file's name."""
    path = tmp_path / "last.pt"
    path.write_text("before")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(OSError) as told:
            write_then_rename(path, lambda beside: torch.save(torch.zeros(100_000), beside))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (told.value.errno, told.value.filename) == (errno.EFBIG, str(path))
    assert [file.name for file in tmp_path.iterdir()] == ["last.pt"]
    assert path.read_text() == "before"

    def broken(beside):
        beside.touch()
        raise RuntimeError("no reason\nat all")

    with pytest.raises(OSError, match=r"cannot be written \(no reason\)"):
        write_then_rename(path, broken)


def test_a_reader_who_has_left_ends_neither_log_nor_run():
    """stderr into "| head": the lines after it go nowhere; stdout: the verb ends without a traceback."""
    code = """
import os, sys, time
from elsa.core import logger, setup_logging
from elsa.tools.tasks.outcome import run
setup_logging()
def main():
    for number in range(3):
        logger.info("line")
    os.write(int(sys.argv[1]), b"done")
    print("x" * 100_000)
run(main)
"""
    done, told = os.pipe()
    readers = [os.pipe() for _ in range(2)]
    for reader, _ in readers:
        os.close(reader)
    (_, out), (_, err) = readers
    process = subprocess.run([sys.executable, "-c", code, str(told)], stdout=out, stderr=err, pass_fds=[told])
    assert os.read(done, 10) == b"done"
    assert process.returncode == 141
    for end in (done, told, out, err):
        os.close(end)
