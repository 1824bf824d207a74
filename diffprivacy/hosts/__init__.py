"""Hosts that implement the Backbone without ComfyUI."""
