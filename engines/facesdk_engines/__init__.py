"""Making engines: conversion to ONNX, cards, bundle recipes.  Needs onnx (`pip install "facesdk[build]"`), never torch."""
