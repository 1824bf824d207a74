"""What every reader owes whoever gives it a bad file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from diffprivacy.errors import DiffPrivacyError


def assert_one_clear_error(read: Callable[[Path], object], path: Path, *words: str) -> None:
    """Reading the file fails with one line that names it and holds the words."""
    with pytest.raises(DiffPrivacyError) as caught:
        read(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    for word in words:
        assert word in message
