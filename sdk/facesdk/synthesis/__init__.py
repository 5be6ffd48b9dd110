"""Synthesis of faces: identity vectors in, pictures out."""
