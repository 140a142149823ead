import pytest
import torch

from flux_hf.token_selection import (
    TOKEN_SELECTORS,
    frame_difference_scores,
    resolve_token_groups,
    select_tokens,
)


BY_BUDGET = [name for name in TOKEN_SELECTORS if name != "threshold"]
EXACT = [name for name in BY_BUDGET if name != "group_dynamic_official"]


def features(batch: int, frames: int, patches: int, width: int = 8, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, frames, patches, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("method", EXACT)
@pytest.mark.parametrize(
    ("frames", "patches"), [(1, 16), (2, 9), (3, 6), (4, 12), (5, 4), (6, 10), (7, 9), (8, 16), (12, 5)]
)
def test_exact_budget_raster_order_and_no_repeats(method, frames, patches):
    total = frames * patches
    clip = features(3, frames, patches)
    for budget in {1, 2, 3, total // 3, total // 2, total - 1}:
        kept = select_tokens(clip, budget, method)
        assert kept.shape == (3, budget)
        assert kept.dtype == torch.int64
        assert bool((kept[:, 1:] > kept[:, :-1]).all())
        assert bool((kept >= 0).all() and (kept < total).all())


@pytest.mark.parametrize("method", BY_BUDGET)
@pytest.mark.parametrize("budget", [None, 48, 10**6])
def test_budget_at_or_above_the_tokens_keeps_all(method, budget):
    kept = select_tokens(features(2, 4, 12), budget, method)
    assert torch.equal(kept, torch.arange(48).expand(2, 48))


@pytest.mark.parametrize(
    ("frames", "groups"), [(1, 1), (2, 1), (3, 1), (4, 1), (5, 1), (6, 2), (7, 1), (8, 4), (10, 2), (12, 4), (24, 4)]
)
def test_groups(frames, groups):
    assert resolve_token_groups(frames) == groups


def test_groups_asked_for():
    assert resolve_token_groups(8, 1) == 1
    assert resolve_token_groups(8, 2) == 2
    assert resolve_token_groups(16, 8) == 8
    assert resolve_token_groups(8, 8) == 2  # eight groups of one frame would have no differences


def test_scores_are_distances_within_the_group():
    clip = features(1, 8, 3)
    scores = frame_difference_scores(clip, num_groups=2).reshape(8, 3)
    for frame in (1, 2, 3, 5, 6, 7):
        expected = (clip[0, frame] - clip[0, frame - 1]).square().sum(-1).sqrt()
        torch.testing.assert_close(scores[frame], expected)
    assert torch.equal(scores[0], scores[1])  # the first frame copies the second's
    assert torch.equal(scores[4], scores[5])


def test_each_group_gets_its_share():
    clip = features(2, 12, 10)
    kept = select_tokens(clip, 50)  # four groups of 30 tokens: 13, 13, 12, 12
    for sample in kept:
        assert torch.bincount(sample // 30, minlength=4).tolist() == [13, 13, 12, 12]


def test_ungrouped_takes_the_best_wherever_they_are():
    clip = torch.zeros(1, 8, 4, 2)
    clip[:, 7] = 5.0  # all motion is in the last frame
    assert select_tokens(clip, 4, "dynamic_l2").tolist() == [[28, 29, 30, 31]]
    assert select_tokens(clip, 4, "group_dynamic").tolist() == [[0, 8, 16, 24]]  # one a group, ties to the earlier


def test_l1_and_l2_differ_where_they_should():
    clip = torch.zeros(1, 2, 2, 4)
    clip[0, 1, 0] = 1.0  # L1 4, L2 2
    clip[0, 1, 1, 0] = 3.0  # L1 3, L2 3
    assert select_tokens(clip, 2, "dynamic_l1").tolist() == [[0, 2]]
    assert select_tokens(clip, 2, "dynamic_l2").tolist() == [[1, 3]]


def test_ties_go_to_the_earlier_token():
    assert select_tokens(torch.ones(1, 2, 6, 3), 5).tolist() == [[0, 1, 2, 3, 4]]


def test_eight_frames_keep_the_same_positions_in_both_frames_of_each_pair():
    kept = select_tokens(features(4, 8, 16), 64)
    mask = torch.zeros(4, 128).scatter_(1, kept, 1).reshape(4, 4, 2, 16)
    assert torch.equal(mask[:, :, 0], mask[:, :, 1])


def test_tube_keeps_the_same_positions_in_every_frame():
    mask = torch.zeros(2, 48).scatter_(1, select_tokens(features(2, 4, 12), 20, "tube"), 1).reshape(2, 4, 12)
    assert torch.equal(mask, mask[:, :1].expand_as(mask))
    assert int(mask[0, 0].sum()) == 5


@pytest.mark.parametrize("method", ["random", "tube"])
def test_random_selectors_follow_the_seed(method):
    clip = features(2, 4, 12)
    torch.manual_seed(7)
    first, second = select_tokens(clip, 12, method), select_tokens(clip, 12, method)
    torch.manual_seed(7)
    assert torch.equal(first, select_tokens(clip, 12, method))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("method", ["group_dynamic", "dynamic_l2", "dynamic_l1"])
def test_an_image_keeps_evenly_spaced_tokens(method):
    kept = select_tokens(features(2, 1, 16), 5, method)
    expected = [(2 * i + 1) * 16 // 10 for i in range(5)]
    assert kept.tolist() == [expected, expected]


@pytest.mark.parametrize(
    ("frames", "size", "budget", "kept"),
    [
        (24, 224, 2048, 2044),
        (16, 196, 2048, 2044),
        (14, 280, 2048, 2046),
        (20, 252, 2048, 2044),
        (24, 196, 3072, 3068),
        (14, 308, 3072, 3070),
        (10, 252, 1024, 1022),
        (12, 224, 1024, 1020),
        (14, 196, 1024, 1022),
        (20, 224, 1024, 1020),
        (10, 224, 512, 510),
        (20, 224, 512, 508),
    ],
)
def test_official_rounding_loses_the_tokens_the_official_code_loses(frames, size, budget, kept):
    clip = features(1, frames, (size // 14) ** 2, width=2)
    assert select_tokens(clip, budget, "group_dynamic_official").shape == (1, kept)
    assert select_tokens(clip, budget, "group_dynamic").shape == (1, budget)


@pytest.mark.parametrize(
    ("frames", "patches", "budget"), [(2, 16, 16), (6, 10, 30), (8, 16, 64), (12, 12, 36), (4, 9, 9)]
)
def test_official_rounding_is_the_exact_selector_where_nothing_is_lost(frames, patches, budget):
    clip = features(3, frames, patches)
    assert torch.equal(select_tokens(clip, budget, "group_dynamic_official"), select_tokens(clip, budget))


def moving(*counts: int) -> torch.Tensor:
    """A clip for each of `counts`, of 3 frames of 4 patches: of the last frame so many move, by 1, 2, ..."""
    clip = torch.zeros(len(counts), 3, 4, 2)
    for index, count in enumerate(counts):
        clip[index, 2, :count, 0] = torch.arange(1.0, count + 1)
    return clip


@pytest.mark.parametrize(
    ("budget", "threshold", "kept"),
    [
        (None, 0.0, [8, 9, 10]),
        (None, 1.0, [9, 10]),  # more than 1
        (None, 2.9, [10]),
        (None, 3.0, [10]),  # none: one is kept all the same
        (2, 0.0, [9, 10]),  # what moved most
        (12, 0.0, [8, 9, 10]),
        (100, 0.5, [8, 9, 10]),
    ],
)
def test_a_threshold_keeps_what_moved_more(budget, threshold, kept):
    assert select_tokens(moving(3), budget, "threshold", threshold=threshold).tolist() == [kept]


def test_a_threshold_in_a_batch():
    clips = moving(3, 2, 4)
    assert select_tokens(clips, 2, "threshold", threshold=0.0).tolist() == [[9, 10], [8, 9], [10, 11]]
    with pytest.raises(ValueError, match=r"keeps \[3, 2, 3\] tokens of these clips.*logits_at_budgets"):
        select_tokens(clips, 3, "threshold", threshold=0.0)
    with pytest.raises(ValueError, match=r"keeps \[3, 2, 4\] tokens"):
        select_tokens(clips, None, "threshold", threshold=0.0)
    with pytest.raises(ValueError, match="method='threshold' needs a threshold .*got None"):
        select_tokens(clips, 3, "threshold")
    assert select_tokens(clips[:, :1], 2, "threshold", threshold=0.0).tolist() == [[1, 3]] * 3  # an image has no motion


def test_scores_are_float32_for_half_precision_features():
    clip = features(2, 8, 30).bfloat16()
    assert frame_difference_scores(clip).dtype == torch.float32
    assert torch.equal(select_tokens(clip, 60), select_tokens(clip.float(), 60))


def test_selection_gives_no_gradient():
    clip = features(1, 4, 6).requires_grad_()
    assert not frame_difference_scores(clip).requires_grad


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(2, 3, 4), 2), r"\(2, 3, 4\)"),
        ((torch.zeros(1, 2, 3, 4), 0), "token_budget.*0"),
        ((torch.zeros(1, 2, 3, 4), -5), "token_budget.*-5"),
        ((torch.zeros(1, 2, 3, 4), 2, "best"), "best"),
        ((torch.zeros(1, 2, 3, 4), 2, "tube", 0), "num_groups.*0"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        select_tokens(*arguments)


@pytest.mark.parametrize("method", BY_BUDGET)
def test_compiles_and_exports(method):
    class Selector(torch.nn.Module):
        def forward(self, clip):
            return select_tokens(clip, 40, method)

    clip = features(2, 8, 12)
    torch.manual_seed(0)
    expected = Selector()(clip)
    compiled = torch.compile(Selector(), fullgraph=True, backend="aot_eager")(clip)
    exported = torch.export.export(Selector(), (clip,)).module()(clip)
    assert compiled.shape == exported.shape == expected.shape
    if method not in ("random", "tube"):  # whose generators differ under compilation
        assert torch.equal(compiled, expected)
        assert torch.equal(exported, expected)
