"""Where the model runs."""

from __future__ import annotations

import torch

from cover.errors import UserError


def pick_device(name: str) -> torch.device:
    """`auto` is the first GPU, else the CPU. Raises `UserError` on a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device: {name} cannot be used: {str(error).splitlines()[0]}") from None
    return device
