"""ComfyUI's pages of a card's memory on a machine without a card, each use and each release of them counted.

install() stands between comfy_aimdo's Python classes, which stay ComfyUI's own, and its native library: a copy of
one of their objects is made, and frees what it does not own, as on a card, where the process would die of it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

OWNER = {"vbar": 1, "hostbuf": 0}
"""Where functions of a kind take the pointer of what they belong to."""
NO_ROOM = 1
"""What the library answers to the fault of a page where the card is full: ComfyUI casts the weight at each use."""


class Native:
    """The native library, whose pages of a card are pretended, and whose buffers in the host's memory are real.

    there: pointers that were allocated and not freed. mistakes: functions that were given another.
    """

    def __init__(self, library: Any):
        self.library = library
        self.there: set[int] = set()
        self.mistakes: list[str] = []
        self._addresses = itertools.count(2**40, 2**36)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        kind, _, action = name.partition("_")
        if kind not in OWNER or action.startswith("file_reader"):
            return getattr(self.library, name)

        def counted(*arguments: Any) -> Any:
            call = getattr(self.library, name) if kind == "hostbuf" else self._page(action)
            if action == "allocate":
                pointer = call(*arguments)
                self.there.add(pointer)
                return pointer
            pointer = arguments[OWNER[kind]]
            if pointer not in self.there:
                self.mistakes.append(name)
                return 0
            if action == "free":
                self.there.remove(pointer)
            return call(*arguments)

        return counted

    def _page(self, action: str) -> Callable[..., int]:
        if action == "allocate":
            return lambda *_: next(self._addresses)
        return lambda _, pointer, *rest: {"get": pointer, "fault": NO_ROOM}.get(action, 0)


def install() -> Native:
    """Put it in the native library's place for the life of this process."""
    from comfy_aimdo import control, host_buffer, model_vbar

    native = Native(control.lib)
    for module in (control, host_buffer, model_vbar):
        module.lib = native
    control.get_devctx = lambda device: 1
    return native
