"""Fixtures of the library tests."""

import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)  # Small tensors: threads cost more than they give, many times more on a busy machine.


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of the real faces and recognizers that DIFFPRIVACY_DATA names."""
    folder = os.environ.get("DIFFPRIVACY_DATA")
    if not folder:
        pytest.skip("needs real faces and recognizers: set DIFFPRIVACY_DATA to their folder")
    return Path(folder)
