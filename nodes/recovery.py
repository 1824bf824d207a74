"""From a latent to the noise map that brings it back, sealed until its owner opens it."""

from __future__ import annotations

import functools

from comfy_api.v0_0_2 import io, ui
from comfy_execution.graph_utils import ExecutionBlocker

from ..diffprivacy import __version__
from ..diffprivacy.diffusion import inversion, sampling
from ..diffprivacy.errors import DiffPrivacyError, at_field
from ..diffprivacy.faces.geometry import Crop
from ..diffprivacy.media.images import Picture
from ..diffprivacy.recovery import encryption, png, replay
from ..diffprivacy.recovery.key import FIDELITIES, OPTIONS, TENSORS, Embedding, RecoveryKey
from ..diffprivacy.recovery.opening import open_keys
from . import secret_sources, sockets
from .comfy import demo_model
from .comfy.border import Border
from .comfy.sampling import euler, run_sampler, sampler

SECOND_STATE = "diffprivacy_second_state"
"""Where a LATENT holds BELM's second state."""
PACK = "pack"
"""Where a key's fingerprints hold the version of this pack; the first version wrote none."""
CATEGORY = "Diff-Privacy/recovery"


class InvertLatent(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffPrivacyInvertLatent",
            display_name="Invert Latent to Noise Map",
            category=CATEGORY,
            description="Runs the sampler backwards: finds the noise map from which the same model, conditioning and "
            "sigmas give the latent back (SamplerCustomAdvanced with DisableNoise, CFG 1).",
            search_aliases=["ddim inversion", "noise map", "unsampler", "exact inversion", "belm", "fixed point"],
            inputs=[
                io.Model.Input("model"),
                io.Conditioning.Input("positive"),
                io.Latent.Input("latent_image", tooltip="A noise mask restricts the inversion to its inside."),
                io.Sigmas.Input("sigmas", tooltip="Descending, the same as for the way back."),
                io.Combo.Input(
                    "method",
                    options=["automatic", "fixed point", "belm", "ddim"],
                    tooltip="automatic: belm below 16 steps, else fixed point. fixed point: exact, replays with the stock "
                    "euler sampler. belm: exact in one evaluation a step and with few steps too, needs the replay sampler "
                    "of this node. ddim: the paper's, approximate.",
                ),
                io.Int.Input(
                    "iterations",
                    default=20,
                    min=1,
                    max=100,
                    advanced=True,
                    tooltip="Most fixed-point iterations a step; it stops early once converged.",
                ),
            ],
            outputs=[
                io.Latent.Output(display_name="noise_map"),
                io.Sampler.Output(display_name="replay_sampler", tooltip="euler, or for belm the sampler it needs."),
            ],
        )

    @classmethod
    def execute(cls, model, positive, latent_image, sigmas, method, iterations) -> io.NodeOutput:
        border = Border.of(model)
        with at_field("latent_image"):
            sampling.check_latent(latent_image["samples"], model.get_model_object("latent_format").latent_channels)
        with at_field("sigmas"):
            sampling.check_sigmas(sigmas)
        border.check_start(sigmas)
        if method == "automatic":
            method = inversion.suited_method(len(sigmas) - 1)
        if method == "belm":
            states = []

            def invert(denoiser, x, sigmas, callback):
                states.extend(inversion.invert_belm(denoiser, x, sigmas, callback))
                return states[0]

        else:
            invert = inversion.invert_ddim
            if method == "fixed point":
                tolerance = inversion.tolerance_for(model.model.get_dtype_inference())
                invert = functools.partial(inversion.invert_fixed_point, iterations=iterations, tolerance=tolerance)
        noise_map = {**latent_image}
        noise_map["samples"] = run_sampler(model, positive, latent_image, sigmas, invert).cpu()
        if method == "belm":
            noise_map[SECOND_STATE] = states[1].cpu()
        return io.NodeOutput(noise_map, _replay_sampler(noise_map.get(SECOND_STATE)))


def _replay_sampler(second_state):
    """The SAMPLER of the way back: euler, or one that holds BELM's second state."""
    if second_state is None:
        return euler()

    def sample(denoiser, x, sigmas, callback):
        return inversion.sample_belm(denoiser, (x, second_state.to(x.device)), sigmas, callback)

    return sampler(sample)


class SealKey(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffPrivacySealKey",
            display_name="Seal Recovery Key",
            category=CATEGORY,
            description="Encrypts what brings a protected image's original back, for Save Protected Image. "
            "To public keys (if only to others', you cannot decrypt it yourself) or to a passphrase.",
            search_aliases=["encrypt", "age", "recovery key", "passphrase", "seal"],
            has_intermediate_output=True,
            inputs=[
                io.Image.Input("protected", tooltip="The protected image, one, as it will be saved."),
                io.Combo.Input(
                    "fidelity",
                    options=list(FIDELITIES),
                    tooltip="latent: as good as the VAE. lossless: the exact pixels of the faces, needs original and faces only. "
                    "compact: nearly as good as latent, with a quarter of the data. For flow and video models take lossless: it "
                    "needs no model, and latents with the conditioning of a language model take 1 to 32 MB.",
                ),
                io.String.Input(
                    "recipients",
                    default="",
                    multiline=True,
                    tooltip="Public keys that may open it, one a line: age1... or an SSH public key. They are no secret. SSH "
                    "keys leave a tag in the file that links all files encrypted to them and can be compared with published "
                    "keys; age1 keys leave none.",
                ),
                io.String.Input(
                    "passphrase",
                    default="",
                    tooltip="Instead of recipients: env:NAME or file:PATH, where the passphrase is found. Never the "
                    "passphrase itself: ComfyUI writes this value into workflows.",
                ),
                io.Combo.Input(
                    "place", options=["inside", "beside"], tooltip="In the saved PNG, or as a file NAME.png.age."
                ),
                io.Latent.Input("noise_map", optional=True, tooltip="From Invert Latent to Noise Map."),
                io.Conditioning.Input("positive", optional=True, tooltip="The conditioning of the inversion."),
                io.Sigmas.Input("sigmas", optional=True, tooltip="The sigmas of the inversion."),
                io.Image.Input("original", optional=True, tooltip="For lossless: the original image."),
                sockets.Faces.Input("faces", optional=True, tooltip="From Crop Faces, for pasting back."),
            ],
            outputs=[sockets.SealedKeys.Output(display_name="sealed_key")],
        )

    @classmethod
    def validate_inputs(cls, passphrase) -> bool | str:
        return secret_sources.fault(passphrase)

    @classmethod
    def fingerprint_inputs(cls, passphrase="", **_) -> str:
        return secret_sources.fingerprint(passphrase)

    @classmethod
    def execute(
        cls,
        protected,
        fidelity,
        recipients,
        passphrase,
        place,
        noise_map=None,
        positive=None,
        sigmas=None,
        original=None,
        faces=None,
    ) -> io.NodeOutput:
        if len(protected) != 1 or (faces is not None and len(faces.faces) != 1):
            raise DiffPrivacyError("A key belongs to one image; give a batch of one.", "protected")
        named = [line.strip() for line in recipients.splitlines() if line.strip()]
        secret = secret_sources.read(passphrase, "passphrase") if passphrase else None
        encryptor = encryption.Encryptor(secret, named)
        if fidelity == "lossless":
            key = _lossless(original, faces)
        else:
            key = _replayed(fidelity, noise_map, positive, sigmas, faces)
        sealed = encryptor.encrypt_key(key.bound_to(Picture(protected[0].cpu().float())))
        text = f"sealed {fidelity} key, {len(sealed) / 1000:.1f} kB"
        return io.NodeOutput(sockets.SealedKey((sealed,), place == "beside"), ui=ui.PreviewText(text))


class OpenKey(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffPrivacyOpenKey",
            display_name="Open Recovery Key",
            category=CATEGORY,
            description="Opens the sealed key of a protected image. Sample its noise map with its conditioning, sigmas "
            "and sampler (SamplerCustomAdvanced, DisableNoise, BasicGuider), decode and paste: the original. A key proves "
            "nothing about who made it: anyone can encrypt one to your public key.",
            search_aliases=["decrypt", "age", "recovery key", "deanonymize", "unseal"],
            has_intermediate_output=True,
            inputs=[
                io.Image.Input("protected", tooltip="The protected image, one."),
                sockets.SealedKeys.Input("sealed_key", tooltip="From Load Image (upright, sRGB)."),
                io.String.Input(
                    "secret",
                    default="env:DIFFPRIVACY_SECRET",
                    tooltip="env:NAME or file:PATH, where the passphrase or the identity (age or SSH) is found. Never the "
                    "secret itself: ComfyUI writes this value into workflows.",
                ),
            ],
            outputs=[
                io.Latent.Output(display_name="noise_map"),
                io.Conditioning.Output(display_name="positive"),
                io.Sigmas.Output(display_name="sigmas"),
                io.Sampler.Output(display_name="replay_sampler"),
                sockets.Faces.Output(display_name="faces", tooltip="For Paste Faces, onto the protected image."),
                io.Image.Output(display_name="original", tooltip="Of a lossless key: the original, without sampling."),
            ],
        )

    @classmethod
    def validate_inputs(cls, secret) -> bool | str:
        return secret_sources.fault(secret)

    @classmethod
    def fingerprint_inputs(cls, secret="", **_) -> str:
        return secret_sources.fingerprint(secret)

    @classmethod
    def execute(cls, protected, sealed_key, secret) -> io.NodeOutput:
        if len(protected) != 1:
            raise DiffPrivacyError("A key belongs to one image; give a batch of one.", "protected")
        if not sealed_key.files:
            raise DiffPrivacyError(f"The image was loaded, but {png.NO_KEY}", "sealed_key")
        decryptor = encryption.decryptor(secret_sources.read(secret))
        picture = Picture(protected[0].cpu().float())
        keys, skipped = open_keys(
            sealed_key.files,
            decryptor,
            lambda key: (replay.check_key if key.patches else replay.check_picture)(picture, key),
        )
        text = f"{len(keys)} of {len(sealed_key.files)} keys opened"
        preview = ui.PreviewText("\n".join([text, *(f"skipped: {reason}" for reason in skipped)]))
        if all(key.patches for key in keys):
            restored = replay.recover(picture, keys)
            blocked = ExecutionBlocker("This lossless key has no noise map: take the output `original`.")
            return io.NodeOutput(*[blocked] * 5, restored.rgb[None], ui=preview)
        (key, *others) = keys
        if others or not key.embeddings or key.noise_map is None:
            raise DiffPrivacyError("The key was made at the command line: run `diffprivacy recover`.")
        noise_map = {"samples": key.noise_map}
        faces = ExecutionBlocker("This key knows no faces: connect them to Seal Recovery Key.")
        if key.faces:
            variants = len(key.noise_map) // len(key.faces)
            faces = sockets.FaceBatch((tuple(key.faces),), key.shape, key.margin, variants, opaque=True)
        return io.NodeOutput(
            noise_map,
            [
                [entry.context, {"pooled_output": entry.pooled, **entry.options, **entry.tensors, **_made_with(key)}]
                for entry in key.embeddings
            ],
            key.sigmas,
            _replay_sampler(key.second_state),
            faces,
            ExecutionBlocker("Only a lossless key holds the original: sample the noise map."),
            ui=preview,
        )


def _lossless(original, faces) -> RecoveryKey:
    if original is None or faces is None or faces.margin is None or len(original) != 1:
        raise DiffPrivacyError("Sockets `original` and `faces`: a lossless key needs one image and Crop Faces' faces.")
    picture = Picture(original[0].cpu().float())
    return replay.record(picture, faces.flat, None, Crop(0, faces.margin), "lossless")


def _replayed(fidelity, noise_map, positive, sigmas, faces) -> RecoveryKey:
    if noise_map is None or positive is None or sigmas is None:
        raise DiffPrivacyError(f"Sockets `noise_map`, `positive` and `sigmas`: a {fidelity} key needs all three.")
    if "noise_mask" in noise_map:
        raise DiffPrivacyError("Invert the latent without a noise mask; a key holds whole crops.", "noise_map")
    with at_field("noise_map"):
        sampling.check_latent(noise_map["samples"])
    with at_field("sigmas"):
        sampling.check_sigmas(sigmas)
    second_state = noise_map.get(SECOND_STATE)
    return RecoveryKey(
        fidelity,
        sigmas=sigmas,
        method="fixed point" if second_state is None else "belm",
        noise_map=noise_map["samples"],
        second_state=second_state,
        embeddings=[_embedding(*entry) for entry in positive],
        faces=() if faces is None else tuple(faces.flat),
        margin=1.0 if faces is None else faces.margin,
        fingerprints={PACK: __version__},
    )


def _made_with(key: RecoveryKey) -> dict[str, str]:
    """What tells the demo model that a key is the first version's, which named none."""
    return {} if PACK in key.fingerprints else {demo_model.VERSION: "0.1"}


def _embedding(context, options) -> Embedding:
    """One entry of a CONDITIONING; raises DiffPrivacyError for what a key cannot hold, such as a ControlNet."""
    rest = {name: value for name, value in options.items() if value is not None}
    pooled = rest.pop("pooled_output", None)
    tensors = {name: rest.pop(name) for name in TENSORS if name in rest}
    if foreign := rest.keys() - set(OPTIONS):
        raise DiffPrivacyError(
            f"It carries {', '.join(sorted(foreign))}, which a key cannot hold; invert with prompts and "
            "time ranges only, or take fidelity lossless.",
            "positive",
        )
    return Embedding(context, pooled, {name: float(value) for name, value in rest.items()}, tensors)


NODES = [InvertLatent, SealKey, OpenKey]
