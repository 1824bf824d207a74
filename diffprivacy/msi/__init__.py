"""Multi-scale image inversion: faces as pseudo-words."""
