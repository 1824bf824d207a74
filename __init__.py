"""ComfyUI entry point of Diff-Privacy."""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    from .nodes import DiffPrivacyExtension

    return DiffPrivacyExtension()
