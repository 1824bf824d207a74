"""Write and read protected images: PNG without prompt, workflow, EXIF or any other metadata."""

from __future__ import annotations

import hashlib
from pathlib import Path

import folder_paths
import torch
from comfy_api.v0_0_2 import io, ui

from ..diffprivacy.media.atomic import Together
from ..diffprivacy.media.disclosure import disclose
from ..diffprivacy.media.images import Picture, encode_png, read_picture
from ..diffprivacy.recovery import png
from . import sockets

CATEGORY = "Diff-Privacy/images"


class SaveProtected(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffPrivacySaveProtected",
            display_name="Save Protected Image",
            category=CATEGORY,
            description="Saves PNG files that hold the image and the mark that a model made a part of it: no prompt, no workflow, no EXIF. "
            "A sealed recovery key goes with them if one is connected.",
            search_aliases=["save without metadata", "save image no workflow", "face privacy"],
            is_output_node=True,
            inputs=[
                io.Image.Input("image"),
                io.String.Input(
                    "filename_prefix",
                    default="protected/picture",
                    tooltip="Name in the output folder, without the ending; choose one that reveals nothing.",
                ),
                sockets.SealedKeys.Input("sealed_key", optional=True, tooltip="From Seal Recovery Key."),
                io.Boolean.Input(
                    "disclosure",
                    default=True,
                    optional=True,
                    tooltip="Mark the file as made in part by a model: the IPTC digital source type, as the EU's AI Act asks.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="image", tooltip="The image as it came, for further nodes."),
                io.String.Output(
                    display_name="filename",
                    is_output_list=True,
                    tooltip="Name of each file below the output folder.",
                ),
            ],
        )

    @classmethod
    def execute(cls, image, filename_prefix, sealed_key=None, disclosure=True) -> io.NodeOutput:
        height, width = image.shape[1:3]
        folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(
            filename_prefix, folder_paths.get_output_directory(), width, height
        )
        results = []
        for i, picture in enumerate(image.cpu().float()):
            file = f"{name}_{counter + i:05}_.png"
            sealed, beside = ((), False) if sealed_key is None else (sealed_key.files, sealed_key.beside)
            data = encode_png(Picture(picture))
            with Together() as files:
                png.add(files, Path(folder) / file, disclose(data) if disclosure else data, sealed, beside)
                files.commit()
            results.append(ui.SavedResult(file, subfolder, io.FolderType.output))
        names = [str(Path(result.subfolder) / result.filename) for result in results]
        return io.NodeOutput(image, names, ui=ui.SavedImages(results))


class LoadProtected(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        folder = Path(folder_paths.get_input_directory())
        files = sorted(file.name for file in folder.iterdir() if file.is_file())
        return io.Schema(
            node_id="DiffPrivacyLoadProtected",
            display_name="Load Image (upright, sRGB)",
            category=CATEGORY,
            description="Reads a photo or a protected image from the input folder: turned upright, converted to sRGB.",
            search_aliases=["load image", "load photo", "exif rotation"],
            inputs=[
                io.Combo.Input(
                    "image",
                    options=folder_paths.filter_files_content_types(files, ["image"]),
                    upload=io.UploadType.image,
                    image_folder=io.FolderType.input,
                ),
            ],
            outputs=[
                io.Image.Output(display_name="image"),
                io.Mask.Output(display_name="mask", tooltip="Where the image is transparent."),
                sockets.SealedKeys.Output(
                    display_name="sealed_key", tooltip="The recovery key inside or beside a protected image."
                ),
            ],
        )

    @classmethod
    def execute(cls, image) -> io.NodeOutput:
        path = Path(folder_paths.get_annotated_filepath(image))
        picture = read_picture(path)
        alpha = picture.alpha if picture.alpha is not None else torch.ones(picture.rgb.shape[:2])
        return io.NodeOutput(picture.rgb[None], 1 - alpha[None], sockets.SealedKey(tuple(png.carried(path))))

    @classmethod
    def fingerprint_inputs(cls, image) -> str:
        path = Path(folder_paths.get_annotated_filepath(image))
        files = [path, *png.found_beside(path)]
        return hashlib.sha256(b"".join(hashlib.sha256(file.read_bytes()).digest() for file in files)).hexdigest()


NODES = [SaveProtected, LoadProtected]
