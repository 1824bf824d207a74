"""The only place that imports comfy.*."""
