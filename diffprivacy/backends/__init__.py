"""Diffusion models without ComfyUI."""
