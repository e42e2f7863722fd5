"""What every test may ask for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(min(2, os.cpu_count() or 1))


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real clips, images and annotation lists, from COVER_TEST_DATA."""
    folder = os.environ.get("COVER_TEST_DATA", "")
    if not folder or not Path(folder).is_dir():
        pytest.skip("real data not given: set COVER_TEST_DATA to its folder")
    return Path(folder)
