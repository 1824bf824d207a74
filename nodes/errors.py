"""Errors of the library, in the words of a graph."""

from __future__ import annotations

import functools

from comfy_api.v0_0_2 import io

from ..diffprivacy.errors import DiffPrivacyError


def naming_sockets(node: type[io.ComfyNode]) -> type[io.ComfyNode]:
    """The node, whose errors name the socket at fault."""
    execute = node.execute.__func__

    @functools.wraps(execute)
    def named(cls, *args, **inputs):
        try:
            return execute(cls, *args, **inputs)
        except DiffPrivacyError as error:
            if error.field is None:
                raise
            raise type(error)(f"Socket `{error.field}`: {error.message}") from error

    node.execute = classmethod(named)
    return node
