"""The doctor finds what is amiss, and says what to do about it."""

from __future__ import annotations

import json
import resource
import shutil
from collections import namedtuple
from importlib import metadata
from pathlib import Path

import pytest
import torch

from cover import doctor
from cover.cli import main
from cover.doctor import try_out
from cover.model.cover import CoVeR
from cover.synthetic.render import VIDEO

Usage = namedtuple("Usage", "total used free")


def test_everything_of_this_machine_is_told(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--quick", "--json", "-"]) == 0
    results = {one["topic"]: one for one in json.loads(capfd.readouterr().out)}
    assert {
        "python",
        "torch",
        "av",
        "processor",
        "ffmpeg",
        "decoders",
        "encoder",
        "disk",
        "temporary",
        "open files",
    } <= set(results)
    assert results["torch"] == {"topic": "torch", "state": "ok", "found": metadata.version("torch"), "fix": ""}
    assert main(["doctor", "--quick"]) == 0
    out, err = capfd.readouterr()
    assert f"ok    torch           {metadata.version('torch')}\n" in out
    assert err.splitlines()[-1] == "next: cover demo"


def test_the_trial_reads_and_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cover.doctor.SECONDS", 0.3)
    reading, training = try_out(torch.device("cpu"), 1)
    assert (reading.state, training.state) == ("ok", "ok"), (reading, training)
    assert "clips of 8 frames a second" in reading.found
    assert "ms a step on cpu" in training.found


@pytest.mark.parametrize("how", [["--quick"], []], ids=str)
@pytest.mark.parametrize("name", ["gpu", "nonsense", "", "cuda:x"])
def test_a_device_that_is_none(name: str, how: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--device", name, *how]) == 2
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1), err
    assert f'cover doctor: --device "{name}" is no device' in err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("how", [["--quick"], []], ids=str)
def test_a_device_that_is_not_there(how: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--device", "cuda", "--json", "-", *how]) == 1
    last = json.loads(capfd.readouterr().out)[-1]
    assert (last["topic"], last["state"], last["fix"]) == ("device", "bad", "choose another --device")
    assert "device: cuda cannot be used" in last["found"]


def test_a_full_disk() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (512, hard))
    try:
        (result,) = doctor._trial("cpu", 0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (result.topic, result.state) == ("writing", "bad")
    assert "File too large" in result.found
    assert "TMPDIR" in result.fix


def test_no_folder_for_temporary_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/nowhere")
    (result,) = doctor._trial("cpu", 0)
    assert (result.topic, result.state, "/nowhere" in result.found, "TMPDIR" in result.fix) == (
        "writing",
        "bad",
        True,
        True,
    )


def test_an_encoder_that_is_lacking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(VIDEO, ".mp4", ("no_such_encoder", {}))
    (result,) = doctor._trial("cpu", 0)
    assert (result.topic, result.state) == ("writing", "bad")
    assert "no_such_encoder" in result.found
    assert "pip install" in result.fix


@pytest.mark.parametrize("workers", [0, 1])
def test_a_clip_that_cannot_be_read(workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cover.doctor.encode", lambda path, frames: path.write_bytes(b"none"))
    (result,) = doctor._trial("cpu", workers)
    assert (result.topic, result.state) == ("reading", "bad")
    assert "Invalid data" in result.found
    assert result.fix


def test_a_device_without_room(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(model: CoVeR, device: torch.device) -> CoVeR:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 MiB")

    monkeypatch.setattr("cover.doctor.SECONDS", 0.1)
    monkeypatch.setattr(CoVeR, "to", full)
    training = doctor._trial("cpu", 0)[-1]
    assert (training.topic, training.state, "out of memory" in training.found) == ("training", "bad", True)


def test_old_and_missing_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = ["torch>=99.1", "no-such-package>=1.0", "numpy>=1.0", 'ray[data]>=99; extra == "cluster"']
    monkeypatch.setattr(metadata, "requires", lambda name: wanted)
    results = {one.topic: one for one in doctor.versions()}
    assert (results["torch"].state, "older than 99.1" in results["torch"].found) == ("bad", True)
    assert results["torch"].fix == "pip install -c constraints.txt 'torch>=99.1'"
    assert (results["no-such-package"].state, results["no-such-package"].found) == ("bad", "not installed")
    assert results["numpy"].state == "ok"
    assert "ray" not in results


def test_an_extra_that_is_lacking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "OPTIONAL", {"no-such-package": "serve"})
    assert [one.found for one in doctor.versions()][
        -1
    ] == "without: serve (pip install -c constraints.txt -e '.[serve]')"


def test_little_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (fine,) = doctor.shared_memory(0, tmp_path)
    assert fine.state == "ok"
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(64 << 20, 0, 64 << 20))
    (few,) = doctor.shared_memory(4, tmp_path)
    assert (few.state, few.fix) == ("warn", "docker run --shm-size 2g (or --ipc=host), or --workers 0")
    assert list(doctor.shared_memory(4, tmp_path / "none")) == []
    assert [(one.topic, one.state) for one in doctor.disk(tmp_path)] == [("disk", "warn"), ("temporary", "warn")]
    (files,) = doctor.limits(10**9)
    assert (files.state, files.fix.startswith("ulimit -n ")) == ("warn", True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_pytorch_does_not_use(tmp_path: Path) -> None:
    driver = tmp_path / "version"
    assert [one.state for one in doctor.devices(driver) if one.topic == "gpu"] == ["ok"]
    driver.write_text("NVRM")
    (result,) = (one for one in doctor.devices(driver) if one.topic == "gpu")
    assert (result.state, "pytorch.org" in result.fix) == ("bad", True)


def test_a_codec_that_is_lacking() -> None:
    (result,) = (one for one in doctor.ffmpeg(["h264", "no_such_codec"]) if one.topic == "decoders")
    assert (result.state, result.found) == ("bad", "without no_such_codec")
    assert "pip install" in result.fix


def test_remedies_stand_below_what_is_amiss(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(metadata, "requires", lambda name: ["torch>=99.1"])
    assert doctor.doctor("cpu", 0, True, None) is False
    out, err = capfd.readouterr()
    place = out.splitlines().index(next(line for line in out.splitlines() if line.startswith("bad   torch")))
    assert out.splitlines()[place + 1].strip() == "-> pip install -c constraints.txt 'torch>=99.1'"
    assert err.startswith("1 will fail, ")
