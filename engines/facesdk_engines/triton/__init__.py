"""Model repositories for NVIDIA Triton Inference Server: one model an engine, and a Python model that joins them.

`repository` writes one; `answers`, `backend` and `serving` are what the Python model runs inside Triton.  They import
no more than `facesdk` does.
"""
