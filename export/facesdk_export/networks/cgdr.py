"""Class-guided denoising regularisation (CGDR): the loss of Face2Diffusion's mapping network.

Inside the face the network learns the true noise; outside it must predict what the frozen one predicts for a prompt of
the class alone, so that the identity's tokens carry no background.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.nn import functional

Form = Literal["paper", "mf2d"]


def latent_mask(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, height, width) float mask on the latent's grid, bilinear, of a mask (B, H, W) of any type; 1 is the face."""
    resized: Tensor = functional.interpolate(mask[:, None].float(), size, mode="bilinear", align_corners=False)
    return resized[:, 0]


def class_guided_loss(predicted: Tensor, of_class: Tensor, noise: Tensor, mask: Tensor, form: Form = "paper") -> Tensor:
    """Mean squared error over (B, 4, h, w) noises with a mask (B, h, w).

    predicted  by the network with the identity's tokens;  of_class  by the frozen one with the class's words.
    form       "paper": against noise inside and of_class outside.  "mf2d": predicted inside and of_class outside,
               against noise everywhere, as MF2D's `f2d_train.py` has it; outside there is nothing to learn from it.
    """
    inside = mask[:, None]
    if form == "mf2d":
        return functional.mse_loss(inside * predicted + (1 - inside) * of_class, noise)
    return functional.mse_loss(predicted, (inside * noise + (1 - inside) * of_class).detach())
