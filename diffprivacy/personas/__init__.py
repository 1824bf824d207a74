"""One person, one new face, in all images."""
