"""Annotation: a photo -> faces with box, landmarks, pose, regions."""
