"""What a diffusion model offers, and everything on its sampling path: denoisers composed with denoisers."""
