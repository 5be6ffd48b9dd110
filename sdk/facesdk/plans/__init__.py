"""TensorRT plans: the library that runs them, their names, the key that tells them apart, their verification."""
