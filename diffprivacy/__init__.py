"""Diff-Privacy: anonymize faces, hide visual identity, recover the original (arXiv 2309.05330)."""

__version__ = "0.2.0"
