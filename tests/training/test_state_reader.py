"""The training state of a checkpoint comes back, and nothing that its files ask for is run."""

from __future__ import annotations

import os
import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.state_dict import get_state_dict

from cover.errors import UserError
from cover.training.checkpoint import SaveJob, Saver
from cover.training.state_reader import METADATA, load_state


class Runs:
    """An object whose unpickling creates the file `marker`."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def state_of(seed: int, lr: float) -> dict[str, Any]:
    torch.manual_seed(seed)
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    model(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    weights, moments = get_state_dict(model, optimizer)
    return {"model": weights, "optimizer": moments, "ema": {"w": torch.full((2,), float(seed), dtype=torch.bfloat16)}}


def save(state: dict[str, Any], folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(state, checkpoint_id=folder, no_dist=True)


def refusal(state: dict[str, Any], folder: Path) -> str:
    with pytest.raises(UserError) as error:
        load_state(state, folder, None, single=True)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save(state_of(1, 0.5), tmp_path / "state")
    return tmp_path / "state"


def test_tensors_and_plain_values_come_back(folder: Path) -> None:
    wanted, state = state_of(1, 0.5), state_of(2, 0.1)
    load_state(state, folder, None, single=True)
    assert torch.equal(state["model"]["weight"], wanted["model"]["weight"])
    assert torch.equal(
        state["optimizer"]["state"]["weight"]["exp_avg"], wanted["optimizer"]["state"]["weight"]["exp_avg"]
    )
    assert torch.equal(state["ema"]["w"], wanted["ema"]["w"])
    assert state["optimizer"]["param_groups"] == wanted["optimizer"]["param_groups"]


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_metadata_with_code_is_refused(folder: Path, tmp_path: Path, protocol: int) -> None:
    marker = tmp_path / "ran"
    (folder / METADATA).write_bytes(pickle.dumps(Runs(marker), protocol))
    assert "asks for" in refusal(state_of(2, 0.1), folder)
    assert not marker.exists()


def test_metadata_that_hides_code_in_a_field_is_refused(folder: Path, tmp_path: Path) -> None:
    found = pickle.loads((folder / METADATA).read_bytes())
    found.planner_data = Runs(tmp_path / "ran")
    (folder / METADATA).write_bytes(pickle.dumps(found))
    assert str(folder / METADATA) in refusal(state_of(2, 0.1), folder)
    assert not (tmp_path / "ran").exists()


def test_a_value_with_code_is_refused(tmp_path: Path) -> None:
    state = state_of(1, 0.5)
    state["optimizer"]["param_groups"][0]["eps"] = Runs(tmp_path / "ran")
    save(state, tmp_path / "state")
    assert "param_groups" in refusal(state_of(2, 0.1), tmp_path / "state")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("place", ["../other.distcp", "/etc/passwd"])
def test_a_file_of_another_folder_is_not_read(folder: Path, place: str) -> None:
    found: Metadata = pickle.loads((folder / METADATA).read_bytes())
    for info in found.storage_data.values():
        info.relative_path = place
    (folder / METADATA).write_bytes(pickle.dumps(found))
    assert place in refusal(state_of(2, 0.1), folder)


@pytest.mark.parametrize("content", [b"", b"no pickle", pickle.dumps({"a": 1}), pickle.dumps(Metadata({}))[:-9]])
def test_damaged_metadata_is_one_line(folder: Path, content: bytes) -> None:
    (folder / METADATA).write_bytes(content)
    assert str(folder / METADATA) in refusal(state_of(2, 0.1), folder)


def test_a_state_of_another_network_is_one_line(folder: Path) -> None:
    state = state_of(2, 0.1)
    state["model"]["weight"] = torch.zeros(7, 3)
    assert "does not fit this run" in refusal(state, folder)
    assert "does not fit this run" in refusal({**state_of(2, 0.1), "more": torch.zeros(1)}, folder)


def test_a_first_checkpoint_that_cannot_be_written_has_none_before_it(tmp_path: Path) -> None:
    from cover.distributed import ProcessGroup
    from cover.training.recipe import Checkpoints

    (tmp_path / "checkpoints").write_text("a file in the place of the folder")
    saver = Saver(tmp_path, ProcessGroup(torch.device("cpu")), sharded=False, settings=Checkpoints())
    saver._run_job(SaveJob(3, torch.nn.Linear(1, 1), {}, {}, {}, {}, 1, None))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="cannot be written: Not a directory; the run has no checkpoint before it"):
        saver.wait()
