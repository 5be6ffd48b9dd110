"""Torch side of FaceSDK: the published networks under their published names, and their export to ONNX engines."""
