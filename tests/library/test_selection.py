"""Which faces are protected: by number, size, mask or person, and never none without saying so."""

import numpy as np
import pytest
import torch

from diffprivacy.errors import DiffPrivacyError, NoFaceError
from diffprivacy.faces.geometry import ARCFACE_TEMPLATE, Face
from diffprivacy.faces.selection import fitted_masks, select_faces, select_person


def face(x: float, y: float, side: float) -> Face:
    return Face((x - side / 2, y - side / 2, x + side / 2, y + side / 2), ARCFACE_TEMPLATE, 0.9)


FACES = [face(20, 50, 20), face(50, 40, 40), face(90, 60, 30)]


@pytest.mark.parametrize(
    ("which", "numbers"),
    [
        ("all", [0, 1, 2]),
        (" ALL ", [0, 1, 2]),
        ("largest", [1]),
        ("0", [0]),
        ("2,0", [0, 2]),
        (" 1 , 2 ", [1, 2]),
        ("1,1", [1]),
    ],
)
def test_by_word_and_number(which, numbers):
    assert select_faces(FACES, which) == [FACES[number] for number in numbers]


def test_by_mask_numbers_count_all_faces():
    mask = torch.zeros(100, 120)
    mask[:, 60:] = 1
    mask[45:55, 15:25] = 1
    assert select_faces(FACES, mask=mask) == [FACES[0], FACES[2]]
    assert select_faces(FACES, "largest", mask) == [FACES[2]]
    assert select_faces(FACES, "1,2", mask) == [FACES[2]]


def test_a_face_whose_middle_lies_beyond_the_border_counts_at_the_border():
    mask = torch.zeros(100, 120)
    mask[:, 0] = 1
    outside = face(-4, 50, 30)
    assert select_faces([outside, FACES[1]], mask=mask) == [outside]


@pytest.mark.parametrize("which", ["3", "0,3", "-1"])
def test_a_number_that_no_face_has(which):
    with pytest.raises(DiffPrivacyError, match=r"faces: There is no face (3|-1); the image has 3, numbered 0 to 2"):
        select_faces(FACES, which)


@pytest.mark.parametrize("which", ["", "both", "0;1", "1.5", "0,,1"])
def test_a_word_that_means_nothing(which):
    with pytest.raises(DiffPrivacyError, match=r"faces: .* all, largest, or numbers"):
        select_faces(FACES, which)


def test_nothing_left_is_an_error_that_names_the_field():
    with pytest.raises(NoFaceError, match="No face was found"):
        select_faces([])
    with pytest.raises(NoFaceError, match="mask"):
        select_faces(FACES, mask=torch.zeros(100, 120))
    only_left = torch.zeros(100, 120)
    only_left[:, :30] = 1
    with pytest.raises(NoFaceError, match=r"faces: '2'.*mask"):
        select_faces(FACES, "2", only_left)


def unit(*values: float) -> np.ndarray:
    return np.array(values) / np.linalg.norm(values)


EMBEDDINGS = np.stack([unit(1, 0.1, 0), unit(0, 1, 0.2), unit(0.1, 0, 1)])


def test_one_person_only_or_all_but_that_person():
    known = unit(1, 0, 0.1)[None]
    assert select_person(FACES, EMBEDDINGS, known, 0.5, "only") == [FACES[0]]
    assert select_person(FACES, EMBEDDINGS, known, 0.5, "all but") == [FACES[1], FACES[2]]


def test_several_photos_of_the_person_count_by_the_likest():
    known = np.stack([unit(1, 0, 0), unit(0, 0, 1)])
    assert select_person(FACES, EMBEDDINGS, known, 0.5, "only") == [FACES[0], FACES[2]]


def test_nobody_left_is_an_error_that_says_how_close_it_was():
    stranger = unit(1, -1, -1)[None]
    with pytest.raises(NoFaceError, match=r"person: .*cosine 0\.5\d at most.*threshold 0\.90"):
        select_person(FACES, EMBEDDINGS, stranger, 0.9, "only")
    with pytest.raises(NoFaceError, match="person: every face is"):
        select_person(FACES, EMBEDDINGS, stranger, -1.0, "all but")


@pytest.mark.parametrize("scale", [0.25, 0.5, 1, 3])
@pytest.mark.parametrize("shape", ["batch", "single"])
def test_a_mask_of_another_size_means_the_same_place(scale, shape):
    """The right half of an image of 100 x 80 pixels, where one face has its middle."""
    height, width = int(80 * scale), int(100 * scale)
    mask = torch.zeros(height, width)
    mask[:, width * 3 // 4 :] = 1
    fitted = fitted_masks(mask if shape == "single" else mask[None], (80, 100))
    assert fitted.shape == (1, 80, 100)
    assert select_faces(FACES, "all", fitted[0]) == [FACES[2]]


def test_masks_of_a_batch_stay_apart_and_their_own_size_stays_exact():
    masks = (torch.rand(3, 8, 6) > 0.5).float()
    assert torch.equal(fitted_masks(masks, (8, 6)), masks)
    assert fitted_masks(masks, (16, 12)).shape == (3, 16, 12)
