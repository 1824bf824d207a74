"""Fixtures of the library tests."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of the real faces and recognizers that DIFFPRIVACY_DATA names."""
    folder = os.environ.get("DIFFPRIVACY_DATA")
    if not folder:
        pytest.skip("needs real faces and recognizers: set DIFFPRIVACY_DATA to their folder")
    return Path(folder)
