"""Making engines: conversion to ONNX, cards, bundle recipes.  Needs onnx (extra `build`), never torch."""
