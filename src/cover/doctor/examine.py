"""Is this machine ready? `cover doctor`: every finding on a line, and below what is amiss its remedy."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any

from cover.console import say, write_json
from cover.doctor.checks import Finding, devices, disk, ffmpeg, limits, shared_memory, versions
from cover.errors import UserError


def doctor(device: str, workers: int, quick: bool, json_target: str | None) -> bool:
    """Look at everything, print it as it is found, and tell whether nothing is bad. `quick`: without the trial.

    Raises `UserError` where `device` is the name of none; one that is merely not there is a finding.
    """
    _check_name(device)
    found: list[dict[str, Any]] = []
    for finding in _findings(device, workers, quick):
        found.append(asdict(finding))
        if json_target != "-":
            print(_line(finding), flush=True)
    if json_target:
        write_json(found, json_target)
    counts = {state: sum(one["state"] == state for one in found) for state in ("bad", "warn")}
    if any(counts.values()):
        say(f"{counts['bad']} will fail, {counts['warn']} could be better")
    return not counts["bad"]


def _findings(device: str, workers: int, quick: bool) -> Iterator[Finding]:
    yield from versions()
    parts: list[Iterable[Finding]] = [devices(), ffmpeg(), disk(), shared_memory(workers), limits(), _absence(device)]
    for part in parts:
        try:
            yield from part
        except (ImportError, OSError) as error:  # of a package that versions() has told of, or one that is broken
            yield Finding("import", "bad", str(error).splitlines()[0], "pip install -c constraints.txt -e . again")
    if not quick:
        yield from _trial(device, workers)


def _check_name(device: str) -> None:
    try:
        import torch
    except (ImportError, OSError):
        return  # versions() tells of it
    try:
        torch.device("cpu" if device == "auto" else device)
    except (RuntimeError, ImportError):
        raise UserError(f'--device "{device}" is no device; write auto, cpu, cuda or cuda:1') from None


def _absence(device: str) -> Iterator[Finding]:
    try:
        from cover.model.device import pick_device
    except (ImportError, OSError):
        return  # devices() has told of it
    try:
        pick_device(device)
    except (UserError, ImportError) as error:  # ImportError: of a device that has a package of its own
        yield Finding("device", "bad", str(error), "choose another --device")


def _trial(device: str, workers: int) -> list[Finding]:
    try:
        from cover.doctor.trial import trial
        from cover.model.device import pick_device
    except (ImportError, OSError) as error:
        return [Finding("trial", "bad", str(error).splitlines()[0], "put right what is bad above, then run it again")]
    try:
        place = pick_device(device)
    except (UserError, ImportError):
        return []  # _absence() has told of it
    return trial(place, workers)


def _line(finding: Finding) -> str:
    remedy = f"\n{'':22}-> {finding.fix}" if finding.fix else ""
    return f"{finding.state:<5} {finding.topic:<15} {finding.found}{remedy}"
