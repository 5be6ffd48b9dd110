"""Face recognition: how well embeddings tell people apart."""
