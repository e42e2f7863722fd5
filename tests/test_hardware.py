"""The device that `auto` takes, on machines that are not at hand."""

from __future__ import annotations

import pytest
import torch

from cover import hardware
from cover.errors import UserError
from cover.hardware import pick_device


def machine(monkeypatch: pytest.MonkeyPatch, *there: str, broken: str = "") -> None:
    """A machine on which torch says that some kinds of devices are there. One of them cannot compute."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: "cuda" in there)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: "mps" in there)
    monkeypatch.setattr(torch.xpu, "is_available", lambda: "xpu" in there)

    class Number:
        def item(self) -> float:
            return 0.0

    def zeros(_: int, device: torch.device) -> Number:
        if device.type == broken or device.type not in (*there, "cpu"):
            raise RuntimeError(f"{device.type} has no kernel image. Compile with something")
        return Number()

    monkeypatch.setattr(hardware.torch, "zeros", zeros)


@pytest.mark.parametrize(
    ("there", "chosen"),
    [(("cuda", "mps", "xpu"), "cuda"), (("mps", "xpu"), "mps"), (("xpu",), "xpu"), ((), "cpu")],
)
def test_auto_takes_the_first_that_is_there(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], there: tuple[str, ...], chosen: str
) -> None:
    machine(monkeypatch, *there)
    assert pick_device("auto").type == chosen
    said = capfd.readouterr().err
    assert ("nothing has been tested" in said) == (chosen in ("mps", "xpu"))


def test_one_that_cannot_compute_is_passed_over_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    machine(monkeypatch, "cuda", broken="cuda")
    assert pick_device("auto").type == "cpu"
    (line,) = capfd.readouterr().err.splitlines()
    assert "cuda" in line
    assert "no kernel image" in line
    with pytest.raises(UserError, match="device: cuda cannot be used: cuda has no kernel image"):
        pick_device("cuda")
