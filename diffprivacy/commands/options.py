"""Options that several commands share, and the parts of requests that they become."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from ..errors import DiffPrivacyError, UsageError
from ..faces.keeping import parse_parts
from ..faces.prompts import parse_prompts
from ..identity.thresholds import SAME_PERSON
from ..recovery.key import FIDELITIES
from .requests import (
    CredentialsRequest,
    ModelRequest,
    PassphraseRequest,
    PeopleRequest,
    PersonasRequest,
    RecognizerFile,
    SealRequest,
)

SEED_WARNING = (
    "warning: --seed is for tests only: anyone who guesses the number can remove the noise from the images and come close "
    "to the original faces; leave it out for images that matter"
)
UNGUIDED_WARNING = "warning: --unguided leaves faces that recognizers still match; leave it out for images that matter"
DEMO_NOTE = "using the embedded demo model, 128x128 pixels a face; --checkpoint gives real quality"
VARIANTS_WARNING = (
    "warning: anyone who has several variants of one face can average them and comes closer to the original than from one; "
    "publish only one of them"
)


OPTIONS = {"person": "--only or --except"}
"""Options whose names differ from their fields'."""


def option_at_fault(error: DiffPrivacyError) -> str:
    """The error's message, with the option at fault if there is one."""
    if error.field is None:
        return error.message
    option = OPTIONS.get(error.field, "--" + error.field.replace("_", "-"))
    return f"{option}: {error.message}"


def positive(text: str) -> int:
    """A whole number of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not 1 or more")
    return number


def percent(text: str) -> int:
    """A whole number from 1 to 100."""
    number = int(text)
    if not 1 <= number <= 100:
        raise argparse.ArgumentTypeError(f"{number} is not from 1 to 100")
    return number


def score(text: str) -> float:
    """A number from 0 to 1."""
    number = float(text)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return number


def parts(text: str) -> tuple[str, ...]:
    """Names of parts of the face, such as "eyes,mouth"."""
    try:
        return parse_parts(text)
    except DiffPrivacyError as error:
        raise argparse.ArgumentTypeError(error.message) from error


def prompts(text: str) -> str:
    """What new faces are to be, checked."""
    try:
        parse_prompts(text)
    except DiffPrivacyError as error:
        raise argparse.ArgumentTypeError(error.message) from error
    return text


def share(text: str) -> float:
    """A number above 0 and up to 1."""
    number = float(text)
    if not 0 < number <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0 and up to 1")
    return number


def cosine(text: str) -> float:
    """A number from -1 to 1."""
    number = float(text)
    if not -1 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not from -1 to 1")
    return number


def moment(text: str) -> float:
    """Seconds, minutes and seconds as in 1:30, or hours too as in 1:02:03.5."""
    if not re.fullmatch(r"(\d+:){0,2}\d+(\.\d+)?", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"{text} is no time; write 90, 1:30 or 0:01:30")
    return sum(float(part) * 60**i for i, part in enumerate(reversed(text.split(":"))))


def whole(text: str) -> int:
    """A whole number that torch takes as a seed."""
    number = int(text)
    if not 0 <= number < 2**63:
        raise argparse.ArgumentTypeError(f"{text} is not from 0 to 2**63 - 1")
    return number


def recognizer_file(text: str) -> RecognizerFile:
    """``FILE``, or ``FILE:RGB`` or ``FILE:BGR`` where the order in which it takes colours is stated."""
    for order in ("RGB", "BGR"):
        if text.endswith(f":{order}"):
            return RecognizerFile(Path(text.removesuffix(f":{order}")), order)
    return RecognizerFile(Path(text))


def add_detector_option(parser: argparse.ArgumentParser) -> None:
    """``detector``, None for the built-in one."""
    parser.add_argument(
        "--detector",
        type=lambda text: None if text == "builtin" else Path(text),
        metavar="FILE",
        help="ONNX detector (SCRFD, RetinaFace or YuNet), or builtin (default)",
    )


def add_json_option(parser: argparse.ArgumentParser) -> None:
    """``as_json``."""
    parser.add_argument(
        "--json",
        dest="as_json",
        action="store_true",
        help="for programs: on the standard output a JSON object a line for each input, and one with the summary",
    )


def add_checkpoint_options(parser: argparse.ArgumentParser) -> None:
    """The checkpoint and where it runs, for :func:`model_request`."""
    parser.add_argument(
        "--checkpoint",
        type=Path,
        metavar="FILE|DIR",
        help="SD 1.x .safetensors, or a diffusers folder (default: demo model)",
    )
    parser.add_argument("--device", metavar="NAME", help="cuda, mps or cpu (default: the first that is available)")


def add_guide_options(parser: argparse.ArgumentParser) -> None:
    """The recognizers that guide, for :func:`model_request`."""
    parser.add_argument(
        "--recognizer",
        action="append",
        type=recognizer_file,
        metavar="FILE[:RGB|:BGR]",
        help="ONNX recognizer to guide with (default: the embedded one); repeat for an ensemble; how it is fed is found by "
        "experiment, or state its order of channels",
    )
    parser.add_argument(
        "--unguided",
        action="store_true",
        help="turn guidance off: recognizers then still match many of the faces",
    )


def add_crop_options(parser: argparse.ArgumentParser) -> None:
    """The face crops, for :func:`model_request`."""
    parser.add_argument(
        "--size",
        type=positive,
        metavar="PIXELS",
        help="side of the face crops (default: what the checkpoint was trained on)",
    )


def add_vision_option(parser: argparse.ArgumentParser) -> None:
    """The CLIP vision model, for :func:`model_request`."""
    parser.add_argument(
        "--clip-vision",
        type=Path,
        metavar="FILE|DIR",
        help="CLIP vision model for MSI, such as ViT-L/14 (the demo model has one)",
    )


def model_request(options: argparse.Namespace) -> ModelRequest:
    """From those of the options above that the command has."""
    return ModelRequest(
        checkpoint=options.checkpoint,
        device=options.device,
        recognizers=tuple(getattr(options, "recognizer", None) or ()),
        unguided=getattr(options, "unguided", False),
        size=getattr(options, "size", None),
        clip_vision=getattr(options, "clip_vision", None),
    )


def add_people_options(parser: argparse.ArgumentParser) -> None:
    """The options that :func:`people_request` reads."""
    group = parser.add_mutually_exclusive_group()
    photos = {"action": "append", "type": Path, "metavar": "PHOTO", "default": []}
    group.add_argument(
        "--only",
        **photos,
        help="protect only the people in these photos: a photo of one face or a folder of them; may be repeated",
    )
    group.add_argument(
        "--except",
        dest="spared",
        **photos,
        help="protect everybody but the people in these photos, given as for --only",
    )
    parser.add_argument(
        "--person-threshold",
        type=cosine,
        metavar="COSINE",
        help=f"from which two faces count as one person (default: kept beside the recognizer, else {SAME_PERSON})",
    )


def people_request(options: argparse.Namespace) -> PeopleRequest:
    """People told by photos."""
    return PeopleRequest(tuple(options.only), tuple(options.spared), options.person_threshold)


def add_personas_options(parser: argparse.ArgumentParser) -> None:
    """The options that :func:`personas_request` reads."""
    group = parser.add_argument_group("personas (one new face for each person, the same in all images and videos)")
    group.add_argument(
        "--personas",
        type=Path,
        metavar="FILE",
        help="sealed file of personas (.age), begun where there is none; people who are met for the first time are added",
    )
    group.add_argument(
        "--personas-secret",
        metavar="PLACE",
        help="env:NAME or file:PATH, where the passphrase or the age identity is found that opens and seals the file",
    )


def personas_request(options: argparse.Namespace) -> PersonasRequest | None:
    """The personas, None for none."""
    if (options.personas is None) != (options.personas_secret is None):
        raise UsageError(
            "--personas and --personas-secret go together: the file, and env:NAME or file:PATH, where its secret is."
        )
    return None if options.personas is None else PersonasRequest(options.personas, options.personas_secret)


def add_credentials_options(parser: argparse.ArgumentParser) -> None:
    """The options that :func:`credentials_request` reads."""
    group = parser.add_argument_group(
        "content credentials (C2PA: a signature that names you and says that a model was used)"
    )
    group.add_argument(
        "--c2pa-certificate", type=Path, metavar="FILE", help="PEM chain of your own certificate, the signer's first"
    )
    group.add_argument("--c2pa-key", type=Path, metavar="FILE", help="PEM private key of that certificate")


def credentials_request(options: argparse.Namespace) -> CredentialsRequest | None:
    """Who signs, None for nobody."""
    if (options.c2pa_certificate is None) != (options.c2pa_key is None):
        raise UsageError("--c2pa-certificate and --c2pa-key go together.")
    if options.c2pa_key is None:
        return None
    return CredentialsRequest(options.c2pa_certificate, options.c2pa_key)


def add_passphrase_options(parser: argparse._ActionsContainer) -> None:
    """Where a passphrase comes from; never from the command line itself, which others can read."""
    parser.add_argument("--passphrase-file", type=Path, metavar="FILE", help="file that holds the passphrase")
    parser.add_argument("--passphrase-env", metavar="NAME", help="environment variable that holds the passphrase")


def passphrase_request(options: argparse.Namespace) -> PassphraseRequest:
    """Where the passphrase is."""
    return PassphraseRequest(options.passphrase_file, options.passphrase_env)


def add_seal_options(parser: argparse.ArgumentParser) -> None:
    """The options that :func:`seal_request` reads."""
    group = parser.add_argument_group("recovery key (without one the original cannot be recovered)")
    add = group.add_argument
    add(
        "--seal-to",
        action="append",
        default=[],
        metavar="RECIPIENT",
        help="public key to encrypt the recovery key to: age1... or an SSH public key; may be repeated. SSH keys leave a tag "
        "that links all files encrypted to them and can be compared with published keys; age1 keys leave none",
    )
    add_passphrase_options(group)
    add("--ask-passphrase", action="store_true", help="encrypt to a passphrase typed at the terminal")
    add(
        "--fidelity",
        choices=FIDELITIES,
        default="latent",
        help="latent (default): as good as the autoencoder; compact: nearly as good, with a quarter of the data; lossless: the "
        "exact pixels, without any model",
    )
    add(
        "--sign-with",
        type=Path,
        metavar="FILE",
        help="sign keys with this Ed25519 private key (ssh-keygen -t ed25519 -N ''), for recover --signer to check; without "
        "a signature a key proves nothing about who made it. Images only",
    )
    add("--key-beside", action="store_true", help="write the sealed key to NAME.png.age instead of into the PNG")
    add(
        "--key-per-face",
        action="store_true",
        help="write one sealed key for each face, so that each can be shared individually",
    )
    add(
        "--keyed",
        action="store_true",
        help="experimental: store no key; the image and the passphrase recover the faces approximately (anonymize only, "
        "unguided)",
    )


def seal_request(options: argparse.Namespace) -> SealRequest:
    """The recovery key."""
    return SealRequest(
        recipients=tuple(options.seal_to),
        passphrase=passphrase_request(options),
        ask_passphrase=options.ask_passphrase,
        sign_with=options.sign_with,
        fidelity=options.fidelity,
        beside=options.key_beside,
        per_face=options.key_per_face,
        keyed=options.keyed,
    )
