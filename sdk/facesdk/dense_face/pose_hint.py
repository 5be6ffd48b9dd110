"""The picture of a head pose that Dense-Face's ControlNet reads: three axes on white."""

from __future__ import annotations

from math import cos, isfinite, radians, sin

import cv2
import numpy as np

from ..errors import UsageError
from ..image import Picture

_RED, _GREEN, _BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def draw_pose_axes(
    yaw_deg: float,
    pitch_deg: float,
    roll_deg: float,
    *,
    size: int = 256,
    axis_length: float = 100,
    thickness: int = 4,
    background: int = 255,
) -> Picture:
    """(size, size, 3) RGB: x axis red, y green, z (towards the viewer, twice as long) blue, drawn in this order.

    Angles as 6DRepNet gives them; yaw is negated and end points are truncated as Dense-Face's inference does.
    Raises UsageError for angles that are not finite.
    """
    if not all(map(isfinite, (yaw_deg, pitch_deg, roll_deg))):
        raise UsageError(f"yaw, pitch, roll are {yaw_deg}, {pitch_deg}, {roll_deg}", remedy="give finite degrees")
    yaw, pitch, roll = radians(-yaw_deg), radians(pitch_deg), radians(roll_deg)
    x_axis = cos(yaw) * cos(roll), cos(pitch) * sin(roll) + cos(roll) * sin(pitch) * sin(yaw)
    y_axis = -cos(yaw) * sin(roll), cos(pitch) * cos(roll) - sin(pitch) * sin(yaw) * sin(roll)
    z_axis = 2 * sin(yaw), -2 * cos(yaw) * sin(pitch)
    centre = (size - 1) / 2
    picture = np.full((size, size, 3), background, np.uint8)
    for (x, y), colour in zip((x_axis, y_axis, z_axis), (_RED, _GREEN, _BLUE), strict=True):
        end = int(centre + axis_length * x), int(centre + axis_length * y)
        cv2.line(picture, (int(centre), int(centre)), end, colour, thickness)
    return picture
