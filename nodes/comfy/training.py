"""What a long computation inside a node needs: to show its progress, and whether to stop."""

from __future__ import annotations

import comfy.model_management
import comfy.utils

Interrupted = comfy.model_management.InterruptProcessingException
"""Raised by :func:`check_interrupted`; no Exception, but a BaseException."""


def progress_bar(total: int) -> comfy.utils.ProgressBar:
    """The bar on the node that runs."""
    return comfy.utils.ProgressBar(total)


def check_interrupted() -> None:
    """Raise Interrupted once the user has stopped the prompt."""
    comfy.model_management.throw_exception_if_processing_interrupted()
