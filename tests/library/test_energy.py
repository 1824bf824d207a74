"""Energies, their random views and their gradient by the latent."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from diffprivacy.errors import DiffPrivacyError
from diffprivacy.faces.alignment import template
from diffprivacy.identity.augmentations import random_view
from diffprivacy.identity.energies import (
    Energy,
    Form,
    augmented,
    diversity,
    identity_away,
    identity_toward,
    latent_gradient,
    near_faces,
    visual_distance,
)
from diffprivacy.identity.recognizers import Ensemble, FaceMatcher, Recognizer, load_recognizer
from diffprivacy.identity.strangers import ASSUMED, SPREAD, Strangers, drawn_aims

SIZE = 48


def recognizer(seed: int = 0, length: int = 32) -> Recognizer:
    torch.manual_seed(seed)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 4, 2), nn.PReLU(), nn.Conv2d(8, 8, 4, 3), nn.PReLU(), nn.Flatten(), nn.Linear(8 * 4 * 4, length)
    )
    return Recognizer(network, input_size=28).double()


def pictures(count: int, seed: int = 0) -> torch.Tensor:
    """Smooth random pictures (count,3,48,48), float64."""
    coarse = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return F.interpolate(coarse, size=SIZE, mode="bicubic").clamp(0, 1)


def landmarks(faces: int) -> torch.Tensor:
    return (template(40) + 4).expand(faces, -1, -1)


def gradient_of(energy: Energy, images: torch.Tensor) -> torch.Tensor:
    images = images.clone().requires_grad_()
    return torch.autograd.grad(energy(images).sum(), images)[0]


@pytest.fixture
def one() -> Recognizer:
    return recognizer()


@pytest.fixture
def both() -> Ensemble:
    return Ensemble([(recognizer(), 1), (recognizer(1), 1)])


def cosines(recognizer: Recognizer, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return recognizer.cosine(recognizer.embed(a, landmarks(len(a))), recognizer.embed(b, landmarks(len(b))))


def away_from(recognizer: FaceMatcher, originals: torch.Tensor, sign: float, form: Form) -> Energy:
    """Away from the originals' identity, or for sign -1 from its opposite, whose cosine is the negative."""
    reference = recognizer.reference(originals, landmarks(len(originals)))
    return identity_away(recognizer, tuple(sign * r for r in reference), landmarks(len(originals)), form=form)


def test_paper_form_is_the_positive_cosine(one):
    images, originals = pictures(3, 1), pictures(3, 2)
    cosine = cosines(one, images, originals)
    torch.testing.assert_close(away_from(one, originals, 1, "paper")(images), cosine.clamp(min=0))
    torch.testing.assert_close(away_from(one, originals, -1, "paper")(images), (-cosine).clamp(min=0))


def test_only_the_smooth_form_has_a_gradient_below_zero(one):
    images, originals = pictures(1, 1), pictures(1, 2)
    sign = -float(cosines(one, images, originals).sign())
    paper = gradient_of(away_from(one, originals, sign, "paper"), images)
    smooth = gradient_of(away_from(one, originals, sign, "smooth"), images)
    assert not paper.any()
    assert smooth.norm() > 0
    above = gradient_of(away_from(one, originals, -sign, "smooth"), images)
    assert smooth.norm() < above.norm()
    assert F.cosine_similarity(smooth.flatten(), -above.flatten(), dim=0) == pytest.approx(1)


def test_toward_is_one_minus_cosine(one):
    images, originals = pictures(2, 1), pictures(2, 2)
    energy = identity_toward(one, one.reference(originals, landmarks(2)), landmarks(2))
    torch.testing.assert_close(energy(images), 1 - cosines(one, images, originals))
    torch.testing.assert_close(energy(originals), torch.zeros(2, dtype=torch.float64), atol=1e-9, rtol=0)


def with_strangers(matcher: Recognizer, mean: float, std: float) -> Recognizer:
    matcher.strangers = (Strangers(mean, std, 100, "a test"),)
    return matcher


@pytest.mark.parametrize("beyond", [-0.3, 0.3])
def test_away_ends_at_each_faces_own_aim(one, beyond):
    """Above its aim a face falls by the cosine that is left, below it nothing is left to lower."""
    images, originals = pictures(4, 1), pictures(2, 2)
    cosine = cosines(one, images, originals.repeat_interleave(2, dim=0))
    aims = cosine + torch.tensor([beyond, -beyond, beyond, -beyond])
    energy = identity_away(one, one.reference(originals, landmarks(2)), landmarks(2), [aims])
    torch.testing.assert_close(energy(images), (cosine - aims).clamp(min=0))
    moving = gradient_of(energy, images).abs().amax(dim=(1, 2, 3)) > 0
    assert moving.tolist() == (cosine > aims).tolist()


def test_without_aims_it_ends_at_the_mean_of_strangers(one):
    images, originals = pictures(3, 1), pictures(3, 2)
    reference = with_strangers(one, 0.1, 0.05).reference(originals, landmarks(3))
    energy = identity_away(one, reference, landmarks(3))(images)
    torch.testing.assert_close(energy, (cosines(one, images, originals) - 0.1).clamp(min=0))


def test_toward_ends_where_machines_surely_accept(one):
    images, originals = pictures(3, 1), pictures(3, 2)
    cosine = cosines(one, images, originals)
    for mean in (-0.9, float(cosine.max()) + 0.1):
        reference = with_strangers(one, mean, 0.05).reference(originals, landmarks(3))
        energy = identity_toward(one, reference, landmarks(3), deviations=4)(images)
        torch.testing.assert_close(energy, (mean + 0.2 - cosine).clamp(min=0))


def test_each_network_ends_at_its_own_strangers(one):
    two = with_strangers(recognizer(1, 64), 0.2, 0.1)
    both = Ensemble([(with_strangers(one, -0.1, 0.1), 1), (two, 3)])
    images, originals = pictures(2, 1), pictures(2, 2)
    parts = [(cosines(m, images, originals) - m.strangers[0].mean).clamp(min=0) for m in (one, two)]
    energy = identity_away(both, both.reference(originals, landmarks(2)), landmarks(2))
    torch.testing.assert_close(energy(images), 0.25 * parts[0] + 0.75 * parts[1])


def test_aims_are_drawn_around_strangers():
    kinds = (Strangers(0.02, 0.1, 100, "a test"), Strangers(-0.1, 0.2, 100, "a test"))
    noise = torch.randn(4000, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    one, other = drawn_aims(kinds, noise, deviations=-0.5)
    for aims, kind in ((one, kinds[0]), (other, kinds[1])):
        assert float(aims.mean()) == pytest.approx(kind.at(-0.5), abs=0.1 * kind.std)
        assert float(aims.std()) == pytest.approx(SPREAD * kind.std, rel=0.05)
    assert abs(float(torch.corrcoef(torch.stack([one, other]))[0, 1])) < 0.06


def test_aims_follow_all_the_noise_of_a_row_and_nothing_else():
    """The same row gives the same aim, wherever it stands; one other number in it an unrelated one."""
    noise = torch.randn(2, 4, 8, 8)
    (aims,) = drawn_aims([ASSUMED], noise)
    assert torch.equal(drawn_aims([ASSUMED], noise.flip(0))[0], aims.flip(0))
    noise[0, -1, -1, -1] += 1e-3
    (changed,) = drawn_aims([ASSUMED], noise)
    assert changed[0] != aims[0]
    assert changed[1] == aims[1]


def test_looking_different_ends_where_it_is_asked_to(one):
    originals, images = pictures(4, 1), pictures(4, 2)
    whole = visual_distance(originals, landmarks(4), landmarks(4))(images)
    aim = float(whole.mean())
    torch.testing.assert_close(
        visual_distance(originals, landmarks(4), landmarks(4), aim)(images), (whole - aim).clamp(min=0)
    )


def test_variants_follow_face_by_face(one):
    originals, variants = pictures(2, 1), pictures(6, 2)
    energy = identity_toward(one, one.reference(originals, landmarks(2)), landmarks(2))
    expected = 1 - cosines(one, variants, originals.repeat_interleave(3, dim=0))
    torch.testing.assert_close(energy(variants), expected)
    with pytest.raises(DiffPrivacyError, match="5 images are no whole number of variants of the 2 reference faces"):
        energy(variants[:5])


def test_ensembles_weigh_each_network(one):
    two = recognizer(1, 64)
    both = Ensemble([(one, 1), (two, 3)])
    images, originals = pictures(2, 1), pictures(2, 2)
    parts = [away_from(member, originals, 1, "smooth")(images) for member in (one, two)]
    torch.testing.assert_close(away_from(both, originals, 1, "smooth")(images), 0.25 * parts[0] + 0.75 * parts[1])


def test_diversity_is_the_papers_sum_over_pairs(one):
    variants = pictures(6, 3)
    energy = diversity(one, landmarks(2), form="paper")(variants)
    for face in range(2):
        rows = variants[3 * face : 3 * face + 3]
        pairs = [cosines(one, rows[i : i + 1], rows[j : j + 1]).clamp(min=0) for i, j in ((0, 1), (0, 2), (1, 2))]
        torch.testing.assert_close(energy[3 * face : 3 * face + 3].sum() * (3 - 1) / 2, torch.cat(pairs).sum())


def test_one_variant_has_nothing_to_differ_from(one):
    energy = diversity(one, landmarks(2))
    assert not energy(pictures(2)).any()
    assert not gradient_of(energy, pictures(2)).any()


class Opposites(FaceMatcher):
    """Sees the first picture of a pair as one person and the second as nearly the opposite: their cosine is negative."""

    weights = (1.0,)

    def embed(self, images: torch.Tensor, landmarks: torch.Tensor, mirrored: bool = False) -> tuple[torch.Tensor, ...]:
        vectors = images.mean(dim=(2, 3)) + torch.tensor([[3.0, 0, 0], [-3.0, 0, 0]], dtype=images.dtype)
        return (F.normalize(vectors),)


def test_diversity_ends_with_strangers_unless_the_smooth_form_is_asked_for():
    images = pictures(2)
    assert not gradient_of(diversity(Opposites(), landmarks(1)), images).any()
    assert not gradient_of(diversity(Opposites(), landmarks(1), form="paper"), images).any()
    assert gradient_of(diversity(Opposites(), landmarks(1), form="smooth"), images).abs().amax(dim=(1, 2, 3)).min() > 0


def test_energies_add_and_scale(one):
    images, originals = pictures(2, 1), pictures(2, 2)
    toward = identity_toward(one, one.reference(originals, landmarks(2)), landmarks(2))
    look = visual_distance(originals, landmarks(2), landmarks(2))
    torch.testing.assert_close((0.5 * toward + look * 2)(images), 0.5 * toward(images) + 2 * look(images))


def test_visual_distance_is_blind_to_light_and_colour_only():
    originals = pictures(4, 1)
    energy = visual_distance(originals, landmarks(4), landmarks(4))
    relit = originals * torch.tensor([0.75, 0.7, 0.65], dtype=torch.float64).view(1, 3, 1, 1) + 0.1
    torch.testing.assert_close(energy(originals), torch.ones(4, dtype=torch.float64))
    assert energy(relit).min() > 0.8
    assert energy(pictures(4, 2)).max() < 0.4
    assert energy(1 - originals).max() < 1e-3


def test_a_recognizer_is_asked_once_for_what_several_energies_see(one, monkeypatch):
    images, originals, points = pictures(2, 1), pictures(2, 2), landmarks(2)
    reference, aims = one.reference(originals, points), one.reference(pictures(2, 3), points)
    away, toward = identity_away(one, reference, points), identity_toward(one, aims, points)
    expected = augmented(away, points, draws=3)(images, 5) + 0.5 * augmented(toward, points, draws=3)(images, 5)
    asked, embed = [], one.embed
    monkeypatch.setattr(one, "embed", lambda *given: asked.append(1) or embed(*given))
    torch.testing.assert_close(augmented(away + 0.5 * toward, points, draws=3)(images, 5), expected)
    assert len(asked) == 3


def test_views_depend_on_the_seed_alone(one):
    images, originals = pictures(2, 1), pictures(2, 2)
    energy = identity_toward(one, one.reference(originals, landmarks(2)), landmarks(2))
    views = augmented(energy, landmarks(2), draws=3)
    assert torch.equal(views(images, seed=5), views(images, seed=5))
    assert not torch.equal(views(images, seed=5), views(images, seed=6))
    generator = torch.Generator().manual_seed(5)
    expected = sum(energy(random_view(images, landmarks(2), generator)) for _ in range(3)) / 3
    torch.testing.assert_close(views(images, seed=5), expected)


class Decoder(nn.Module):
    """Latents (B,4,6,6) to pictures (B,3,48,48), float64."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.up = nn.ConvTranspose2d(4, 3, 8, 8).double()

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(2 * self.up(latents))


def whole_energy(both: Ensemble, faces: int) -> Energy:
    originals = pictures(faces, 2)
    reference = both.reference(originals, landmarks(faces))
    away = identity_away(both, reference, landmarks(faces)) + 0.5 * diversity(both, landmarks(faces))
    return augmented(away + visual_distance(originals, landmarks(faces), landmarks(faces)), landmarks(faces), draws=2)


def latents(count: int) -> torch.Tensor:
    return torch.randn(count, 4, 6, 6, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


def test_latent_gradient_is_the_numeric_one(both):
    energy, decoder, z0 = whole_energy(both, 1), Decoder(), latents(2)
    direction = torch.randn(z0.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    step = 1e-6
    ahead, behind = (energy(decoder(z0 + s * step * direction), 7).sum() for s in (1, -1))
    slope = (latent_gradient(energy, decoder)(z0, seed=7) * direction).sum()
    assert slope.item() == pytest.approx(((ahead - behind) / (2 * step)).item(), rel=1e-4)


@pytest.mark.parametrize("which", ["away", "toward", "diversity", "visual distance", "augmented"])
def test_every_energy_passes_gradcheck(one, which):
    reference = one.reference(pictures(1), landmarks(1))
    toward = identity_toward(one, reference, landmarks(1))
    energy = {
        "away": identity_away(one, reference, landmarks(1)),
        "toward": toward,
        "diversity": diversity(one, landmarks(1)),
        "visual distance": visual_distance(pictures(1), landmarks(1), landmarks(1)),
        "augmented": augmented(toward, landmarks(1), draws=1),
    }[which]
    decoder = Decoder()
    assert torch.autograd.gradcheck(lambda z: energy(decoder(z)), latents(2).requires_grad_(), fast_mode=True)


@pytest.mark.parametrize("chunk", [1, 2, 4])
def test_chunks_change_nothing(both, chunk):
    energy, decoder = whole_energy(both, 2), Decoder()
    whole = latent_gradient(energy, decoder)(latents(6), seed=1)
    torch.testing.assert_close(latent_gradient(energy, decoder, chunk)(latents(6), seed=1), whole)


def test_latent_gradient_works_in_inference_mode(both):
    decoder = Decoder()
    outside = latent_gradient(whole_energy(both, 2), decoder)(latents(2), seed=1)
    with torch.inference_mode():
        gradient = latent_gradient(whole_energy(both, 2), decoder)
        torch.testing.assert_close(gradient(latents(2), seed=1), outside)


def test_steps_see_different_views_and_repeated_runs_the_same(both):
    gradient = latent_gradient(whole_energy(both, 1), Decoder())
    assert torch.equal(gradient(latents(1)), gradient(latents(1)))
    assert not torch.equal(gradient(latents(1)), gradient(latents(1), seed=0))


@pytest.mark.parametrize("name", ["mobilefacenet_ms1m", "mobileface_v2"])
def test_gradient_through_a_real_recognizer_is_the_numeric_one(data_dir, name):
    real = load_recognizer(data_dir / f"recognizers/{name}.onnx").double()
    images, originals = pictures(2, 1), pictures(2, 2)
    energy = identity_away(real, real.reference(originals, landmarks(2)), landmarks(2))
    energy = energy + diversity(real, landmarks(1))
    direction = torch.randn(images.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    step = 1e-7
    numeric = (energy(images + step * direction).sum() - energy(images - step * direction).sum()) / (2 * step)
    assert (gradient_of(energy, images) * direction).sum().item() == pytest.approx(numeric.item(), rel=1e-2)


class LocalDecoder(nn.Module):
    """Latents (B,4,h,w) to pictures 8 times their size, each pixel from its neighbourhood."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Conv2d(4, 8, 3, 1, 1), nn.Conv2d(8, 3, 3, 1, 1)
        self.decoded = 0

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        self.decoded = latents[0, 0].numel()
        features = F.interpolate(torch.tanh(self.first(latents)), scale_factor=8, mode="nearest")
        return torch.sigmoid(self.last(features))


@pytest.mark.parametrize("draws", [0, 2])
def test_decoding_near_the_faces_gives_the_gradient_of_decoding_everything(draws):
    """Two faces in pictures three times as wide; random views recolour by the whole picture's mean, so they agree less."""
    points = torch.stack([template(40) + 60, template(40) + 75])
    network, decoder = recognizer().float(), LocalDecoder().requires_grad_(False)
    reference = network.reference(pictures(2).float(), landmarks(2))
    energy = identity_toward(network, reference, points) + 0.5 * visual_distance(
        pictures(2).float(), landmarks(2), points
    )
    if draws:
        energy = augmented(energy, points, draws)
    z0 = torch.randn(4, 4, 24, 24, generator=torch.Generator().manual_seed(1))
    whole = latent_gradient(energy, decoder)(z0, seed=1)
    assert energy.landmarks is not None
    near = latent_gradient(energy, near_faces(decoder, energy.landmarks))(z0, seed=1)
    assert decoder.decoded < 0.6 * 24 * 24
    assert F.cosine_similarity(near.flatten(), whole.flatten(), dim=0) > (0.9 if draws else 0.99999)
    if not draws:
        torch.testing.assert_close(near, whole, atol=1e-6, rtol=1e-4)


def test_a_window_that_leaves_the_picture_ends_at_its_border():
    points = (template(40) - 10)[None]
    z0 = torch.randn(1, 4, 6, 6)
    decoder = LocalDecoder()
    assert torch.allclose(near_faces(decoder, points)(z0)[..., :24, :24], decoder(z0)[..., :24, :24], atol=1e-6)
    assert near_faces(decoder, points)(z0).shape == (1, 3, 48, 48)


def test_an_energy_that_may_read_anything_is_not_confined_to_faces(one):
    face = diversity(one, landmarks(1))
    assert torch.equal((2 * face + face).landmarks, torch.cat([landmarks(1), landmarks(1)]))
    assert (face + Energy(lambda seen, _: seen.images.mean(dim=(1, 2, 3)))).landmarks is None
