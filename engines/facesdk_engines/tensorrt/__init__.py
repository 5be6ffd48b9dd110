"""TensorRT plans of a bundle's engines: profiles, a build in a process of its own, and the key that tells them apart.

Two libraries: TensorRT for RTX (`tensorrt-rtx`), which builds without a GPU for several at once, and TensorRT 10 or 11
(`tensorrt`), which builds on the GPU that the plan is for.  Neither is imported before something is built.
"""
