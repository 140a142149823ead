import pytest
import torch

from training.data.mixing import MixConfig, MixupCutmix


def batch(size=4):
    """Clips of one level each, of which every pixel tells where it came from."""
    videos = torch.arange(float(size)).view(size, 1, 1, 1, 1).expand(size, 3, 3, 10, 12)
    return videos, torch.arange(size) % 3


def mix(config, seed=0, size=4):
    return MixupCutmix(3, config)(*batch(size), torch.Generator().manual_seed(seed))


def test_off_gives_smoothed_targets_and_the_same_videos():
    videos, targets = mix(MixConfig(label_smoothing=0.3))
    assert torch.equal(videos, batch()[0])
    expected = torch.full((4, 3), 0.1)
    expected[range(4), [0, 1, 2, 0]] = 0.8
    torch.testing.assert_close(targets, expected)


@pytest.mark.parametrize("size", [4, 5, 1])
def test_mixup_mixes_pixels_and_targets_alike(size):
    plain = MixupCutmix(3, MixConfig())(*batch(size), torch.Generator())[1]
    for seed in range(5):
        videos, targets = mix(MixConfig(mixup_alpha=0.8), seed, size)
        own, partner = torch.arange(float(size)), torch.arange(float(size)).flip(0)
        share = 0.5 if size == 1 else ((videos[0].mean() - partner[0]) / (own[0] - partner[0])).item()
        assert 0 <= share <= 1
        torch.testing.assert_close(videos[:, 0, 0, 0, 0], share * own + (1 - share) * partner)
        assert videos.flatten(1).std(1).max() < 1e-6 if size > 1 else True
        torch.testing.assert_close(targets, share * plain + (1 - share) * plain.flip(0))


def test_cutmix_pastes_one_box_into_all_frames_and_weighs_targets_by_its_area():
    plain = MixupCutmix(3, MixConfig())(*batch(), torch.Generator())[1]
    areas = set()
    for seed in range(30):
        videos, targets = mix(MixConfig(cutmix_alpha=1.0), seed)
        pasted = videos[0] == 3
        assert torch.equal(pasted, pasted[:1, :1].expand_as(pasted))
        rows, columns = pasted[0, 0].any(1), pasted[0, 0].any(0)
        assert torch.equal(pasted[0, 0], rows[:, None] & columns[None])  # a box
        area = pasted[0, 0].float().mean().item()
        areas.add(area)
        torch.testing.assert_close(targets, (1 - area) * plain + area * plain.flip(0))
        assert targets.sum(1).allclose(torch.ones(4))
    assert len(areas) > 10 and max(areas) > 0.4


def test_probabilities_choose_between_none_mixup_and_cutmix():
    kinds = {"none": 0, "mixup": 0, "cutmix": 0}
    for seed in range(400):
        videos, _ = mix(MixConfig(0.8, 1.0, prob=0.5, switch_prob=0.25), seed)
        levels = set(videos[0].flatten().tolist())
        kinds["none" if levels == {0.0} else "cutmix" if levels <= {0.0, 3.0} else "mixup"] += 1
    # of 400: 200 +- 10, 150 +- 10, 50 +- 7; a tiny or empty box counts as none
    assert 150 < kinds["none"] < 260 and 105 < kinds["mixup"] < 195 and 15 < kinds["cutmix"] < 85


def test_a_function_of_the_generator():
    config = MixConfig(0.8, 1.0)
    for one, other in zip(mix(config, 3), mix(config, 3), strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(mix(config, 3)[0], mix(config, 4)[0])


def test_several_labels_a_clip():
    labels = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    _, targets = MixupCutmix(3, MixConfig(label_smoothing=0.2))(batch(2)[0], labels, torch.Generator())
    torch.testing.assert_close(targets, torch.tensor([[0.9, 0.9, 0.1], [0.1, 0.1, 0.1]]))


def test_errors():
    with pytest.raises(ValueError, match="-1"):
        MixConfig(mixup_alpha=-1)
    with pytest.raises(ValueError, match="label_smoothing.*2"):
        MixConfig(label_smoothing=2)
    with pytest.raises(ValueError, match=r"\(4,\) or \(4, 3\), got \(3,\)"):
        MixupCutmix(3, MixConfig())(batch()[0], torch.zeros(3, dtype=torch.int64), torch.Generator())
