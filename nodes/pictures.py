"""Write and read protected pictures: PNG without prompt, workflow, EXIF or any other metadata."""

from __future__ import annotations

import hashlib
from pathlib import Path

import folder_paths
import torch
from comfy_api.v0_0_2 import io, ui

from ..diffprivacy.images import Picture, read_picture, write_picture

CATEGORY = "Diff-Privacy/pictures"


class SaveProtected(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffPrivacySaveProtected",
            display_name="Save Protected Picture",
            category=CATEGORY,
            description="Saves PNG files that hold the picture and nothing else: no prompt, no workflow, no EXIF.",
            search_aliases=["save without metadata", "save image no workflow", "face privacy"],
            is_output_node=True,
            inputs=[
                io.Image.Input("image"),
                io.String.Input(
                    "filename_prefix",
                    default="protected/picture",
                    tooltip="Name in the output folder, without the ending; choose one that tells nothing.",
                ),
            ],
        )

    @classmethod
    def execute(cls, image, filename_prefix) -> io.NodeOutput:
        height, width = image.shape[1:3]
        folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(
            filename_prefix, folder_paths.get_output_directory(), width, height
        )
        results = []
        for i, picture in enumerate(image.cpu().float()):
            file = f"{name}_{counter + i:05}_.png"
            write_picture(Path(folder) / file, Picture(picture))
            results.append(ui.SavedResult(file, subfolder, io.FolderType.output))
        return io.NodeOutput(ui=ui.SavedImages(results))


class LoadProtected(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        folder = Path(folder_paths.get_input_directory())
        files = sorted(file.name for file in folder.iterdir() if file.is_file())
        return io.Schema(
            node_id="DiffPrivacyLoadProtected",
            display_name="Load Picture (upright, sRGB)",
            category=CATEGORY,
            description="Reads a photo or a protected picture from the input folder: turned upright, converted to sRGB.",
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
                io.Mask.Output(display_name="mask", tooltip="Where the picture is transparent."),
            ],
        )

    @classmethod
    def execute(cls, image) -> io.NodeOutput:
        picture = read_picture(Path(folder_paths.get_annotated_filepath(image)))
        alpha = picture.alpha if picture.alpha is not None else torch.ones(picture.rgb.shape[:2])
        return io.NodeOutput(picture.rgb[None], 1 - alpha[None])

    @classmethod
    def fingerprint_inputs(cls, image) -> str:
        return hashlib.sha256(Path(folder_paths.get_annotated_filepath(image)).read_bytes()).hexdigest()


NODES = [SaveProtected, LoadProtected]
