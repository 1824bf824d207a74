"""What is kept of a face keeps its bits, and the rest of the face does not; a covered face is of one colour."""

from __future__ import annotations

import numpy as np
import pytest
import skimage.data
import torch

from diffprivacy.errors import DiffPrivacyError
from diffprivacy.faces.covering import cover_faces
from diffprivacy.faces.geometry import MARGIN, Face, protected_mask
from diffprivacy.faces.keeping import PARTS, check_kept, keep_original, kept_parts, parse_parts

POINTS = np.array([[203, 102], [247, 102], [226, 128], [208, 150], [243, 150]], np.float32)
FACE = Face((180, 60, 270, 185), POINTS, 0.9)


@pytest.fixture(scope="module")
def astronaut() -> torch.Tensor:
    return torch.from_numpy(skimage.data.astronaut()).float() / 255


@pytest.mark.parametrize(
    ("part", "inside", "outside"),
    [
        ("eyes", [(203, 102), (247, 102)], [(226, 150), (226, 128)]),
        ("nose", [(226, 128), (226, 115)], [(203, 102), (226, 150)]),
        ("mouth", [(208, 150), (243, 150), (226, 150)], [(226, 115), (203, 102)]),
        ("contour", [(226, 190)], [(226, 128), (203, 102), (226, 150)]),
    ],
)
def test_each_part_is_where_its_points_are(astronaut, part, inside, outside):
    mask = kept_parts(astronaut.shape, [FACE], [part])
    assert all(mask[y, x] == 1 for x, y in inside)
    assert all(mask[y, x] == 0 for x, y in outside)
    assert mask[protected_mask(astronaut.shape, [FACE]) == 0].max() == 0


def test_parts_lean_with_the_face(astronaut):
    turned = Face(FACE.box, np.stack((-POINTS[:, 1] + 380, POINTS[:, 0]), axis=1), 0.9)
    mask = kept_parts(astronaut.shape, [turned], ["mouth"])
    assert mask[226, 230] == 1  # between the corners of the mouth
    assert mask[226 - 24, 230] == 1 and mask[226, 230 - 24] < 1  # longer along them than across


def test_kept_pixels_keep_their_bits_and_the_others_are_new(astronaut):
    keep = kept_parts(astronaut.shape, [FACE], ["eyes", "mouth"])
    new = 1 - astronaut
    result = keep_original(astronaut, new, keep)
    assert torch.equal(result[keep == 1], astronaut[keep == 1])
    assert torch.equal(result[keep == 0], new[keep == 0])
    between = (keep > 0) & (keep < 1)
    assert between.any() and ((result - new)[between].abs() <= (astronaut - new)[between].abs() + 1e-6).all()


def test_names_are_checked():
    assert parse_parts(" Eyes, mouth ,") == ("eyes", "mouth")
    assert parse_parts("") == ()
    with pytest.raises(DiffPrivacyError, match=r"'ears' is none of eyes, nose, mouth, contour"):
        parse_parts("eyes,ears")


def test_a_face_that_would_be_kept_whole_is_an_error(astronaut):
    check_kept(kept_parts(astronaut.shape, [FACE], ["eyes", "nose", "mouth"]), [FACE], MARGIN, "keep")
    for keep in (torch.ones(512, 512), kept_parts(astronaut.shape, [FACE], PARTS)):
        with pytest.raises(DiffPrivacyError, match=r"socket keep: \d+% of face 0 would be kept"):
            check_kept(keep, [FACE], MARGIN, "socket keep")


def test_a_covered_face_is_flat_and_of_the_skins_colour(astronaut):
    covered = cover_faces(astronaut, [FACE])
    mask = protected_mask(astronaut.shape, [FACE])
    assert torch.equal(covered[mask == 0], astronaut[mask == 0])
    inside = covered[mask > 0]
    assert (inside.amax(dim=0) - inside.amin(dim=0)).max() < 1e-5
    red, green, blue = inside[0].tolist()
    assert red > green > blue > 0.2


def test_a_face_beyond_the_border_is_covered_as_far_as_it_is_seen(astronaut):
    beyond = Face((-60, 60, 30, 185), POINTS - np.array((240, 0), np.float32), 0.9)
    covered = cover_faces(astronaut, [beyond])
    mask = protected_mask(astronaut.shape, [beyond]) > 0
    assert mask.any() and not torch.equal(covered[mask], astronaut[mask])
