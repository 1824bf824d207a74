"""Protecting the faces of a video."""
