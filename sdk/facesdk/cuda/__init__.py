"""A GPU through cuda-python: its memory, streams and graphs, and the arrays of other packages on it."""
