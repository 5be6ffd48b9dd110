"""Face swap: crop, network, paste-back."""
