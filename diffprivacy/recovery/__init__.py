"""Recovery keys: what brings an original back, and how it is encrypted."""
