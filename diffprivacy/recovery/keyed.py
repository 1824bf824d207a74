"""Keyed mode (experimental), beyond the paper: the published picture and a short secret bring the face back, without a stored noise map.

A face's crop is inverted to its noise map; within the mask the map is turned by a rotation that the secret decides; the
turned map is sampled down to the face that is published. The way back inverts the published face, turns back and
samples. A rotation keeps Gaussian noise Gaussian: a wrong secret gives another face, not noise. Each of its rounds
permutes, flips signs and mixes by a cosine transform, so neither magnitudes nor signs of the original map remain.

What is published went through the autoencoder, the picture's pixels and the soft border, so recovery is approximate.

Experimental, because guesses of the secret need no eye: of faces recovered under many secrets, those under the right
one join the rest of the picture better at the mask's seam. What keeps the face is the cost of a guess alone.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..diffusion.conditioning import stage_denoiser
from ..diffusion.inversion import invert_fixed_point
from ..diffusion.model import DiffusionModel
from ..diffusion.sampling import Callback, ddim_sigmas, sample_euler
from ..errors import DiffPrivacyError
from ..faces.geometry import Crop, Face, crop_face, face_mask, paste_faces
from .key import RecoveryKey, face_fields
from .replay import ReplayModel, check_crops, check_fingerprints, check_places

EXPERIMENTAL = (
    "keyed mode is experimental: recovery is rough, and whoever has the image can try passphrases and tell by machine which "
    "is likely right; use a long random one, or seal a key instead"
)
VERSION = 2
MAX_PUBLIC = 2**18
STEPS = 20
ITERATIONS = 3
"""Of the fixed point at each step: what the autoencoder and the pixels lose is far more than what is left then."""
END = 0.1
"""Noise level at which sampling stops: the published face keeps that much noise, which is what the way back can hold on to."""
ROUNDS = 3
SALT_BYTES = 16
SCRYPT: dict[str, int] = {"n": 2**17, "r": 8, "p": 1, "maxmem": 2**28}
"""Cost of one guess of the secret: 128 MiB of memory, about half a second."""


@dataclass(frozen=True, eq=False)
class Public:
    """What travels openly with a picture in keyed mode: a random salt, where the crops were cut, and with which checkpoint.

    checkpoint: its fingerprint; empty in pictures of the first version.
    """

    salt: bytes
    faces: Sequence[Face]
    size: int
    margin: float
    checkpoint: str = ""

    def to_bytes(self) -> bytes:
        """As JSON."""
        fields = {"version": VERSION, "salt": self.salt.hex(), "size": self.size, "margin": self.margin}
        fields["checkpoint"] = self.checkpoint
        return json.dumps({**fields, "faces": [face_fields(face) for face in self.faces]}).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Public:
        """Raises DiffPrivacyError for anything that :meth:`to_bytes` would not write."""
        from pydantic import ValidationError

        from .fields import PublicFields

        if len(data) > MAX_PUBLIC:
            raise DiffPrivacyError(f"What the image carries for keyed recovery has more than {MAX_PUBLIC} bytes.")
        try:
            fields = PublicFields.model_validate_json(data)
        except ValidationError as error:
            if any(wrong["loc"] == ("version",) and wrong["type"] == "literal_error" for wrong in error.errors()):
                raise DiffPrivacyError(
                    "The image was protected by a newer version in keyed mode: update this program."
                ) from None
            raise DiffPrivacyError("What the image carries for keyed recovery is damaged.") from None
        faces = tuple(face.face() for face in fields.faces)
        return cls(bytes.fromhex(fields.salt), faces, fields.size, fields.margin, fields.checkpoint)


def rotate(noise_map: Tensor, mask: Tensor, seed: bytes, back: bool = False) -> Tensor:
    """The noise map (1,C,h,w) with its elements within a mask (h,w) turned by an orthogonal map that the seed decides.

    back: undo it. Elements outside keep their bits.
    """
    from scipy.fft import dct, idct

    inside = (mask > 0.5).expand_as(noise_map[0])
    x = noise_map[0][inside].cpu().double().numpy()
    rounds = [_permutation_and_signs(seed + bytes([i]), len(x)) for i in range(ROUNDS)]
    if back:
        for order, signs in reversed(rounds):
            turned = idct(x, norm="ortho") * signs
            x = np.empty_like(turned)
            x[order] = turned
    else:
        for order, signs in rounds:
            x = dct(x[order] * signs, norm="ortho")
    turned_map = noise_map.clone()
    turned_map[0][inside] = torch.from_numpy(x).to(noise_map)
    return turned_map


def anonymize_keyed(
    picture: Tensor,
    faces: Sequence[Face],
    diffusion_model: ReplayModel,
    crop: Crop,
    secret: str,
    callback: Callback | None = None,
) -> tuple[Tensor, Public]:
    """The picture (H,W,3) in [0,1] with the faces that the secret turns them into, and what the way back needs openly.

    No recognizer guides: the new face is whatever the turned noise gives.
    """
    checkpoint = diffusion_model.fingerprints["checkpoint"]
    public = Public(secrets.token_bytes(SALT_BYTES), tuple(faces), crop.size, crop.margin, checkpoint)
    return _turned(picture, public, diffusion_model, secret, False, callback), public


def recover_keyed(
    picture: Tensor, public: Public, diffusion_model: ReplayModel, secret: str, callback: Callback | None = None
) -> Tensor:
    """The original of a picture (H,W,3) in keyed mode, approximately; with a wrong secret, other faces.

    Raises DiffPrivacyError for another checkpoint, and for faces and crops that the picture and the diffusion model don't
    explain.
    """
    if public.checkpoint:
        check_fingerprints({"checkpoint": public.checkpoint}, diffusion_model)
    return _turned(picture, public, diffusion_model, secret, True, callback)


def keyed_sigmas(diffusion_model: DiffusionModel) -> Tensor:
    """The descending noise levels of both ways, which end at ``END``."""
    sigmas = ddim_sigmas(diffusion_model.noise_levels, STEPS)
    return torch.cat([sigmas[sigmas > 1.3 * END], sigmas.new_tensor([END])])


def _turned(
    picture: Tensor, public: Public, diffusion_model: ReplayModel, secret: str, back: bool, callback: Callback | None
) -> Tensor:
    check_crops(public.size, diffusion_model)
    places = [RecoveryKey("latent", faces=(face,), neighbours=None, margin=public.margin) for face in public.faces]
    check_places(picture.shape, places)
    key = derive(secret, public.salt)
    crops = []
    for i in range(len(public.faces)):
        noise_map, mask = face_noise(picture, public, i, diffusion_model, callback)
        crops.append(face_of(rotate(noise_map, mask, face_seed(key, i), back), diffusion_model))
    return paste_faces(picture, crops, public.faces, public.margin, opaque=back)


def derive(secret: str, salt: bytes) -> bytes:
    """32 bytes that a secret and a salt decide, at the cost that ``SCRYPT`` sets."""
    return hashlib.scrypt(secret.encode(), salt=salt, dklen=32, **SCRYPT)


def face_seed(key: bytes, face: int) -> bytes:
    """The rotation's seed for one of a picture's faces."""
    return key + face.to_bytes(4, "big")


def face_noise(
    picture: Tensor, public: Public, face: int, diffusion_model: DiffusionModel, callback: Callback | None = None
) -> tuple[Tensor, Tensor]:
    """The noise map (1,C,h,w) of a face as a picture (H,W,3) shows it, and the mask (h,w) to be turned in it."""
    crop = crop_face(picture, public.faces[face], public.size, public.margin).movedim(-1, 0)[None]
    latent = diffusion_model.encode(crop)
    mask = face_mask(public.faces[face], public.size, public.margin)[None, None]
    mask = F.interpolate(mask, latent.shape[2:], mode="area")[0, 0]
    denoiser = stage_denoiser(diffusion_model)
    return invert_fixed_point(denoiser, latent, keyed_sigmas(diffusion_model), callback, ITERATIONS), mask


def face_of(noise_map: Tensor, diffusion_model: DiffusionModel) -> Tensor:
    """The crop (S,S,3) in [0,1] that a noise map (1,C,h,w) becomes."""
    latent = sample_euler(stage_denoiser(diffusion_model), noise_map, keyed_sigmas(diffusion_model))
    return diffusion_model.decode(latent)[0].movedim(0, -1).cpu()


def _permutation_and_signs(seed: bytes, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Both from SHAKE-256's stream, so that they are the same with every version of every library."""
    stream = np.frombuffer(hashlib.shake_256(seed).digest(16 * length), dtype="<u8")
    return stream[:length].argsort(kind="stable"), 1.0 - 2.0 * (stream[length:] & 1)
