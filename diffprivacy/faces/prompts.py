"""What each new face is to be, in words."""

from __future__ import annotations

import re

from ..errors import DiffPrivacyError

_NUMBERED = re.compile(r"\s*(\d+)\s*:\s*(.*?)\s*", re.DOTALL)


def parse_prompts(text: str) -> dict[int | None, str]:
    """The words for each face by its number, those for all other faces under None.

    "0: an old man; 1: a young woman, smiling" names faces; "an old man" is for all, "1: smiling; a man" for face 1 and
    the others. Raises DiffPrivacyError for two prompts for one face.
    """
    prompts: dict[int | None, str] = {}
    for part in filter(str.strip, text.split(";")):
        match = _NUMBERED.fullmatch(part)
        number, words = (int(match[1]), match[2]) if match else (None, part.strip())
        if number in prompts:
            who = "all others" if number is None else f"face {number}"
            raise DiffPrivacyError(
                f"There are two prompts for {who}; write one, such as 0: an old man; 1: a woman.", "prompt"
            )
        prompts[number] = words
    return prompts


def prompts_of(prompts: dict[int | None, str], faces: int) -> list[str]:
    """The words for each of so many faces, empty for none; raises DiffPrivacyError for a number that no face has."""
    unknown = sorted(number for number in prompts if number is not None and number >= faces)
    if unknown:
        raise DiffPrivacyError(
            f"There is no face {unknown[0]}; there are {faces}, numbered 0 to {faces - 1}.", "prompt"
        )
    return [prompts.get(number, prompts.get(None, "")) for number in range(faces)]
