"""CLIP's byte-pair tokenizer, the same for every text encoder of Stable Diffusion 1.x, 2.x and XL.

``clip_merges.txt.gz`` holds the merges that OpenAI published with CLIP (MIT licence).
"""

from __future__ import annotations

import functools
import gzip
from pathlib import Path

from ..errors import DiffPrivacyError

CONTEXT_LENGTH = 77
START_TOKEN = 49406
END_TOKEN = 49407
PLACEHOLDER = "*"
PLACEHOLDER_TOKEN = 265

_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


@functools.cache
def _bpe():
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    lines = gzip.decompress((Path(__file__).parent / "clip_merges.txt.gz").read_bytes()).decode().splitlines()
    merges = [(first, second) for first, second in (line.split() for line in lines)]
    printable = [b for b in range(256) if 33 <= b <= 126 or 161 <= b <= 172 or b >= 174]
    alphabet = [chr(b) for b in printable] + [chr(256 + i) for i in range(256 - len(printable))]
    words = [*alphabet, *(c + "</w>" for c in alphabet), *(a + b for a, b in merges)]
    vocabulary = {word: i for i, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, end_of_word_suffix="</w>", unk_token="<|endoftext|>")
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return tokenizer


def isolate_placeholders(prompt: str) -> str:
    """The prompt with spaces around every ``*``, so that "*, smiling" still holds the placeholder's own token."""
    return prompt.replace(PLACEHOLDER, f" {PLACEHOLDER} ").strip()


def check_placeholders(prompt: str, pseudo_words: int) -> None:
    """Raise DiffPrivacyError unless the prompt holds one ``*`` for each pseudo-word."""
    found = prompt.count(PLACEHOLDER)
    if found != pseudo_words:
        raise DiffPrivacyError(
            f"The prompt {prompt!r} holds {found} placeholder(s) `*` for {pseudo_words} pseudo-word(s); "
            "write one `*` for each."
        )


def tokenize(prompt: str, pad_token: int = END_TOKEN) -> list[int]:
    """77 token ids: start, the prompt cut to 75 tokens, end, then pad_token (END_TOKEN in SD 1.x, 0 in SD 2.x)."""
    ids = _bpe().encode(prompt, add_special_tokens=False).ids[: CONTEXT_LENGTH - 2]
    ids = [START_TOKEN, *ids, END_TOKEN]
    return ids + [pad_token] * (CONTEXT_LENGTH - len(ids))
