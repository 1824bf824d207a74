"""Recovery keys as bytes: they come back as they were, and no bytes do harm."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import struct
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

from diffprivacy.errors import DiffPrivacyError
from diffprivacy.faces.geometry import ARCFACE_TEMPLATE, Face
from diffprivacy.recovery import envelope
from diffprivacy.recovery import key as keys
from diffprivacy.recovery.key import Embedding, Patch, RecoveryKey


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def face(shift: float = 0.0) -> Face:
    return Face((1.0, 2.0, 90.0, 110.5), ARCFACE_TEMPLATE + np.float32(shift), 0.75)


def full_key(**changes: Any) -> RecoveryKey:
    values: dict[str, Any] = {
        "fidelity": "latent",
        "sigmas": torch.tensor([14.0, 5.0, 1.0, 0.0]),
        "method": "belm",
        "noise_map": draw(2, 4, 8, 8),
        "second_state": draw(2, 4, 8, 8, seed=1),
        "prompt": "a photo of *",
        "pseudo_words": draw(2, 10, 16, seed=2),
        "faces": (face(), face(20.0)),
        "size": 64,
        "margin": 1.45,
        "patches": (Patch(3, 4, b"one"), Patch(5, 6, b"other")),
        "precision": "float16",
        "fingerprints": {"checkpoint": "abc", "autoencoder": "def"},
        "picture": "0123",
        "shape": (480, 640),
    }
    return RecoveryKey(**(values | changes))


def test_everything_comes_back():
    key = full_key()
    found = RecoveryKey.from_bytes(key.to_bytes())
    for name in ("noise_map", "second_state", "sigmas", "pseudo_words"):
        assert torch.equal(getattr(found, name), getattr(key, name))
    for name in ("fidelity", "method", "prompt", "size", "margin", "precision", "fingerprints", "picture", "shape"):
        assert getattr(found, name) == getattr(key, name)
    for one, other in zip(found.faces, key.faces, strict=True):
        assert (one.box, one.score) == (other.box, other.score)
        assert np.array_equal(one.landmarks, other.landmarks)
    assert [(p.top, p.left, p.file) for p in found.patches] == [(3, 4, b"one"), (5, 6, b"other")]


def test_a_graphs_conditioning_comes_back():
    """With what text encoders that are language models add to it."""
    language = {
        "attention_mask": torch.ones(1, 154, dtype=torch.int64),
        "t5xxl_ids": torch.arange(12),
        "t5xxl_weights": torch.linspace(0, 1, 12),
    }
    entries = [
        Embedding(draw(1, 77, 16), draw(1, 32), {"start_percent": 0.0, "end_percent": 0.4}),
        Embedding(draw(1, 154, 16, seed=1), None, {"guidance": 3.5}, language),
    ]
    map_ = draw(2, 16, 1, 3, 3)  # Of a video model.
    key = full_key(embeddings=entries, noise_map=map_, second_state=map_ + 1)
    found_key = RecoveryKey.from_bytes(key.to_bytes())
    assert torch.equal(found_key.noise_map, map_)
    found = found_key.embeddings
    for one, other in zip(found, entries, strict=True):
        assert torch.equal(one.context, other.context)
        assert one.options == other.options
        assert one.tensors.keys() == other.tensors.keys()
        assert all(torch.equal(one.tensors[name], other.tensors[name]) for name in one.tensors)
    assert torch.equal(found[0].pooled, entries[0].pooled)
    assert found[1].pooled is None


def test_the_key_of_one_face_holds_nothing_of_the_other():
    key = full_key()
    single = key.only(1)
    data = single.to_bytes()
    assert [tuple(other.box) for other in single.neighbours] == [key.faces[0].box]
    for tensor in (key.noise_map, key.second_state, key.pseudo_words):
        assert tensor[1].numpy().tobytes() in data
        assert tensor[0].numpy().tobytes() not in data
    assert b"one" not in data
    assert [patch.file for patch in RecoveryKey.from_bytes(data).patches] == [b"other"]
    assert single.faces == (key.faces[1],)


def test_compact_takes_a_quarter_and_loses_little():
    shape = (1, 4, 64, 64)
    values = {"noise_map": draw(*shape) * 14, "second_state": None, "pseudo_words": None, "method": "ddim"}
    values |= {"faces": (face(),), "patches": ()}
    sizes = {}
    for fidelity in ("latent", "compact"):
        data = full_key(fidelity=fidelity, **values).to_bytes()
        sizes[fidelity] = len(body(data))
        noise_map = RecoveryKey.from_bytes(data).noise_map
        error = (noise_map - values["noise_map"]).abs().max() / values["noise_map"].abs().max()
        assert error <= (0 if fidelity == "latent" else 0.5 / 127 + 1e-6)
    assert 64_000 < sizes["latent"] < 68_000
    assert sizes["compact"] < 0.3 * sizes["latent"]


def body(data: bytes) -> bytes:
    """The safetensors of a key, without what follows them."""
    length = struct.unpack("<Q", data[:8])[0]
    tensors = json.loads(data[8 : 8 + length])
    return data[: 8 + length + max(tensor["data_offsets"][1] for name, tensor in tensors.items() if name[0] != "_")]


def test_tensors_are_plain_safetensors():
    assert torch.equal(load(body(full_key().to_bytes()))["noise_map"], full_key().noise_map)


def changed(**fields: Any) -> bytes:
    """The full key with fields of its content replaced; None removes one."""
    data = body(full_key().to_bytes())
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    content = json.loads(header["__metadata__"]["content"])
    content = {name: value for name, value in (content | fields).items() if value is not None}
    header["__metadata__"]["content"] = json.dumps(content)
    return with_header(header, data[8 + length :])


def with_header(header: Any, body: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("fidelity", "best"),
        ("method", ["belm"]),
        ("prompt", 3),
        ("prompt", "x" * 3000),
        ("size", -1),
        ("size", 1.5),
        ("size", True),
        ("margin", float("nan")),
        ("margin", "2"),
        ("precision", "float128"),
        ("fingerprints", ["a"]),
        ("fingerprints", {"a": 1}),
        ("picture", None),
        ("shape", [1]),
        ("shape", [10**9, 1]),
        ("faces", [{}]),
        ("faces", [{"box": [0, 0, 1, 1], "landmarks": [[0, 0]] * 5, "score": 1}]),
        ("faces", [{"box": [0, 0, 1, float("inf")], "landmarks": ARCFACE_TEMPLATE.tolist(), "score": 1}]),
        ("patches", [[-1, 0], [0, 0]]),
        ("patches", [[0, 0]]),
        ("embeddings", [{}]),
        ("embeddings", [{"control": 1.0}]),
        ("neighbours", [{"box": [0, 0, 1, 1], "landmarks": [[0, 0]] * 5, "score": 1}]),
    ],
)
def test_a_wrong_field_is_named(field, value):
    with pytest.raises(DiffPrivacyError, match=f"field `{field}"):
        RecoveryKey.from_bytes(changed(**{field: value}))


def entry(shape: list, dtype: str = "F32", end: int = 0) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [0, end]}


METADATA = {"format": keys.FORMAT, "version": "1", "content": "{}"}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ([], "no table"),
        ({}, "does not say so"),
        ({"__metadata__": {**METADATA, "version": "3"}}, "update it"),
        ({"__metadata__": {**METADATA, "content": "["}}, "`content`"),
        ({"__metadata__": METADATA, "code": entry([1])}, "`code`"),
        ({"__metadata__": METADATA, "patch.x": entry([1], "U8")}, "patch.x"),
        ({"__metadata__": METADATA, "noise_map": entry([1, 4, 8, 8], "F64")}, "type"),
        ({"__metadata__": METADATA, "noise_map": entry([4, 8, 8])}, "4 or 5 dimensions"),
        ({"__metadata__": METADATA, "noise_map": entry([1, 4, 0, 8])}, "too large or empty"),
        ({"__metadata__": METADATA, "noise_map": entry([1, 4, 2**40, 2**40])}, "too large or empty"),
        ({"__metadata__": METADATA, "noise_map": entry([256, 4096, 4096, 4096])}, "does not fit"),
        ({"__metadata__": METADATA, "noise_map": entry([1, 4, 8, 10.0])}, "dimensions"),
        ({"__metadata__": METADATA, "noise_map": 3}, "type"),
    ],
)
def test_a_wrong_header_is_refused_before_any_tensor_is_made(header, message, monkeypatch):
    def never(*arguments: Any) -> None:
        raise AssertionError("a tensor was made")

    monkeypatch.setattr("safetensors.torch.load", never)
    with pytest.raises(DiffPrivacyError, match=message):
        RecoveryKey.from_bytes(with_header(header, b"1234"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"noise_map": draw(2, 4, 8, 8) / 0}, "`noise_map` is wrong: it holds NaN"),
        ({"noise_map": None, "second_state": None, "patches": ()}, "`noise_map` is wrong: it is missing"),
        ({"sigmas": torch.tensor([1.0, 2.0])}, "do not descend"),
        ({"sigmas": None}, "`sigmas`"),
        ({"second_state": None}, "`second_state`"),
        ({"second_state": draw(2, 4, 8, 4)}, "`second_state`"),
        ({"faces": (face(),) * 3, "patches": ()}, "`faces`"),
        ({"faces": (face(),)}, "`patches`"),
        ({"pseudo_words": draw(1, 10, 16)}, "`pseudo_words`"),
    ],
)
def test_parts_that_do_not_fit_each_other_are_named(changes, message):
    with pytest.raises(DiffPrivacyError, match=message):
        RecoveryKey.from_bytes(full_key(**changes).to_bytes())


def test_keys_beyond_the_cap_are_neither_written_nor_read(monkeypatch):
    data = full_key().to_bytes()
    monkeypatch.setattr(keys, "MAX_BYTES", len(data) - 1)
    with pytest.raises(DiffPrivacyError, match="are not read"):
        RecoveryKey.from_bytes(data)
    monkeypatch.setattr(envelope, "LENGTHS", (len(body(data)),))
    with pytest.raises(DiffPrivacyError, match="fewer faces"):
        full_key().to_bytes()


def test_a_key_that_could_not_be_read_again_is_not_written():
    """More faces than a key may have, and more of what a graph may give it."""
    many = keys.MAX_ROWS + 1
    for changes, field in (
        ({"faces": (face(),) * many, "noise_map": draw(many, 4, 2, 2)}, "noise_map"),
        ({"embeddings": [Embedding(draw(1, 7, 4), None, {"area": 1.0})]}, "embeddings"),
        ({"embeddings": [Embedding(draw(1, 7, 4), tensors={"t5xxl_ids": torch.tensor([40000])})]}, "t5xxl_ids"),
        ({"embeddings": [Embedding(draw(1, 7, 4), tensors={"concat": draw(1, 2)})]}, "concat.0"),
        ({"embeddings": [Embedding(draw(1, 7, 4))], "noise_map": draw(2, 4, 3, 2, 2)}, "noise_map"),
        ({"noise_map": draw(2, 4, 1, 2, 2)}, "noise_map"),
    ):
        with pytest.raises(DiffPrivacyError, match=f"`{field}`"):
            full_key(
                **{"second_state": None, "pseudo_words": None, "patches": (), "method": "ddim"} | changes
            ).to_bytes()


@pytest.mark.parametrize("count", [1, 2, 7])
def test_lengths_tell_neither_fidelity_nor_faces(count):
    """Sealed keys have one of a few lengths, whatever is in them."""
    lengths = set()
    for fidelity in ("latent", "compact"):
        key = full_key(fidelity=fidelity, noise_map=draw(count, 4, 8, 8), second_state=None, method="ddim")
        key = dataclasses.replace(key, faces=(face(),) * count, patches=(), pseudo_words=None, prompt="x" * count)
        lengths.add(len(key.to_bytes()))
    lossless = full_key(faces=(face(),) * count, patches=(Patch(0, 0, bytes(5000)),) * count)
    lengths.add(len(dataclasses.replace(lossless, noise_map=None, second_state=None, pseudo_words=None).to_bytes()))
    assert lengths == {envelope.LENGTHS[0]}


def test_padding_holds_nothing(monkeypatch):
    data = full_key().to_bytes()
    rest = data[len(body(data)) :]
    assert not any(rest)
    for wrong in (data[:-1] + b"x", body(data) + b"\0" * 63):
        with pytest.raises(DiffPrivacyError, match="no padding"):
            RecoveryKey.from_bytes(wrong)
    assert RecoveryKey.from_bytes(body(data)).prompt == "a photo of *"


def test_other_safetensors_are_no_key():
    with pytest.raises(DiffPrivacyError, match="no recovery key"):
        RecoveryKey.from_bytes(save({"noise_map": draw(1, 4, 8, 8)}))


def only_documented_errors(data: bytes) -> None:
    with contextlib.suppress(DiffPrivacyError):
        RecoveryKey.from_bytes(data)


@given(st.binary(max_size=400))
def test_any_bytes_give_a_documented_error(content):
    for data in (content, struct.pack("<Q", len(content)) + content):
        with pytest.raises(DiffPrivacyError):
            RecoveryKey.from_bytes(data)


DATA = full_key(embeddings=[Embedding(draw(1, 7, 4), draw(1, 3), {"strength": 0.5})]).to_bytes()


@given(st.lists(st.tuples(st.integers(0, len(DATA) - 1), st.integers(0, 255)), max_size=5), st.integers(0, 40))
@settings(max_examples=400)
def test_changed_bytes_give_a_key_or_a_documented_error(changes, cut):
    data = bytearray(DATA)
    for place, value in changes:
        data[place % 3000] = value
    only_documented_errors(bytes(data[: len(data) - cut]))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=12,
)


@given(st.sampled_from(["fidelity", "size", "margin", "faces", "patches", "embeddings", "shape", "fingerprints"]), JSON)
@settings(max_examples=300)
def test_any_value_of_a_field_gives_a_key_or_a_documented_error(field, value):
    only_documented_errors(changed(**{field: value}))


def test_deeply_nested_headers_are_refused():
    text = b"[" * 500_000
    with pytest.raises(DiffPrivacyError):
        RecoveryKey.from_bytes(struct.pack("<Q", len(text)) + text)
