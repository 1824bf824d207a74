"""Where faces are: detection, geometry, masks, selection."""
