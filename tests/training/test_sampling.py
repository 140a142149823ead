from collections import Counter

import numpy as np
import pytest

from flux_hf import sample_frame_indices
from training.data.sampling import (
    SAMPLING_PRESETS,
    ClipShape,
    FlexibleSampling,
    FluxBatchSampler,
    draw_shape,
    sample_views,
    step_generator,
)


PAPER_PAIRS = {
    8: (224, 252),
    10: (224, 252),
    12: (196, 224, 252),
    14: (196, 224),
    16: (168, 196, 224),
    18: (168, 196),
    20: (168, 196),
    22: (168,),
    24: (168,),
}
SHAPES = [ClipShape(4, 28), ClipShape(6, 28), ClipShape(4, 56)]


def batches(sampler, epoch=0, skip=0):
    sampler.set_epoch(epoch, skip)
    return list(sampler)


def test_the_paper_has_18_legal_pairs():
    pairs = SAMPLING_PRESETS["paper"].legal_shapes()
    assert pairs == [ClipShape(frames, size) for frames, sizes in PAPER_PAIRS.items() for size in sizes]
    assert len(pairs) == 18


def test_the_released_script_has_41_legal_pairs_and_its_default_window_51():
    released = SAMPLING_PRESETS["released"]
    pairs = released.legal_shapes()
    assert len(pairs) == 41
    by_frames = {frames: [p.size for p in pairs if p.num_frames == frames] for frames in (6, 24)}
    assert by_frames == {6: [280, 308, 336], 24: [140, 168, 196, 224]}
    assert len(FlexibleSampling(released.frames, released.sizes, (2048, 8192)).legal_shapes()) == 51


def test_a_window_includes_its_ends_and_counts_tubelets():
    sampling = FlexibleSampling((4, 8), (28, 56), (16, 32))
    assert sampling.legal_shapes() == [ClipShape(4, 28), ClipShape(8, 28)]
    assert sampling.legal_shapes(tubelet_size=2) == [ClipShape(4, 56), ClipShape(8, 28)]


def test_draws_are_uniform_over_the_legal_pairs():
    pairs = SAMPLING_PRESETS["paper"].legal_shapes()
    counts = Counter(draw_shape(pairs, 0, epoch, step) for epoch in range(20) for step in range(450))
    assert set(counts) == set(pairs)
    assert max(abs(count - 500) for count in counts.values()) < 110  # five standard deviations


def test_an_epoch_has_every_clip_once_and_one_shape_a_batch():
    sampler = FluxBatchSampler(26, 4, SHAPES, seed=3)
    epoch = batches(sampler, epoch=2)
    assert len(epoch) == len(sampler) == 6
    indices = [request.index for batch in epoch for request in batch]
    assert len(set(indices)) == len(indices) == 24 and set(indices) <= set(range(26))
    for batch in epoch:
        assert len({(request.num_frames, request.size, request.epoch) for request in batch}) == 1
        assert batch[0].epoch == 2
    left_out = [
        set(range(26)) - {request.index for batch in batches(sampler, epoch) for request in batch}
        for epoch in range(30)
    ]
    assert len(set(map(frozenset, left_out))) > 10  # no clip is left out for ever


def test_processes_share_out_the_batches_of_one_process():
    whole = batches(FluxBatchSampler(26, 6, SHAPES, seed=1), epoch=5)
    parts = [batches(FluxBatchSampler(26, 2, SHAPES, 1, rank, 3), epoch=5) for rank in range(3)]
    assert [sum(shares, []) for shares in zip(*parts, strict=True)] == whole


def test_independent_shapes_differ_between_ranks_and_do_not_repeat_by_chance():
    samplers = [FluxBatchSampler(64, 2, SHAPES, 0, rank, 2, same_shape_on_all_ranks=False) for rank in range(2)]
    shapes = [[sampler.shape_of(0, step) for step in range(16)] for sampler in samplers]
    assert shapes[0] != shapes[1]
    assert [batch[0].num_frames for batch in batches(samplers[1])] == [shape.num_frames for shape in shapes[1]]


def test_a_resumed_epoch_draws_what_the_uninterrupted_one_draws():
    whole = batches(FluxBatchSampler(50, 4, SHAPES, seed=7), epoch=3)
    fresh = FluxBatchSampler(50, 4, SHAPES, seed=7)
    assert batches(fresh, epoch=3, skip=5) == whole[5:]
    assert batches(fresh, epoch=4) != batches(fresh, epoch=3)
    assert batches(FluxBatchSampler(50, 4, SHAPES, seed=8), epoch=3) != whole


def test_step_generators_differ_by_each_argument():
    def first(*arguments):
        return step_generator(*arguments).initial_seed()

    assert first(0, 1, 2, 3) == first(0, 1, 2, 3)
    assert len({first(0, 0, 0, 0), first(1, 0, 0, 0), first(0, 1, 0, 0), first(0, 0, 1, 0), first(0, 0, 0, 1)}) == 5


def among(num_clips, pictures, batch_size, *more, **changes):
    """A sampler of videos with pictures among them."""
    marked = np.isin(np.arange(num_clips), list(pictures))
    shapes = [ClipShape(1, 224), ClipShape(1, 252)]
    return FluxBatchSampler(num_clips, batch_size, SHAPES, *more, pictures=marked, picture_shapes=shapes, **changes)


def test_pictures_are_in_batches_of_their_own():
    pictures = set(range(5, 15))
    sampler = among(31, pictures, 3, seed=2)
    seen, kinds = [], []
    for epoch in range(3):
        found = batches(sampler, epoch)
        assert len(found) == len(sampler) == 3 + 7
        for batch in found:
            indices = {request.index for request in batch}
            assert indices <= pictures or not indices & pictures
            [shape] = {(request.num_frames, request.size) for request in batch}
            assert (shape in {(1, 224), (1, 252)}) == (indices <= pictures)
            seen += [*indices]
        kinds.append([batch[0].index in pictures for batch in found])
        assert len(set(seen[-30:])) == 30  # none twice
    assert kinds[0] != kinds[1] != kinds[2] and set(seen) == set(range(31))
    parts = [batches(among(31, pictures, 1, 2, rank, 3), epoch=2) for rank in range(3)]
    assert [sum(batch, []) for batch in zip(*parts, strict=True)] == batches(sampler, 2)
    assert batches(sampler, 2, skip=4) == batches(sampler, 2)[4:]


def test_pictures_alone():
    assert len(batches(among(6, range(6), 3))) == 2
    assert batches(among(26, [], 4)) == batches(FluxBatchSampler(26, 4, SHAPES))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: FlexibleSampling((4,), (30,), (1, 99)).legal_shapes(), "patch_size=14.*30"),
        (lambda: FlexibleSampling((3,), (28,), (1, 99)).legal_shapes(tubelet_size=2), "tubelet_size=2.*3"),
        (lambda: FlexibleSampling((4,), (28,), (17, 99)).legal_shapes(), r"\[17, 99\]; there are \[16\]"),
        (lambda: FluxBatchSampler(3, 2, SHAPES, world_size=2), "4 clips.*3"),
        (lambda: FluxBatchSampler(8, 2, SHAPES, rank=2, world_size=2), "rank.*2"),
        (lambda: FluxBatchSampler(8, 0, SHAPES), "batch_size.*0"),
        (lambda: FluxBatchSampler(8, 2, []), "shapes"),
        (lambda: among(8, [0], 2), "2 clips of one kind, but there are 1 pictures and 7 videos"),
        (lambda: among(8, range(7), 2), "2 clips of one kind, but there are 7 pictures and 1 videos"),
        (lambda: among(8, [0, 1], 2, clip_weights=np.ones(8)), "by weight where pictures are among them"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_views_of_folders_of_frames_follow_ssv2s_own_rule():
    assert sample_views(48, 8, 1, "ssv2").tolist() == [[3, 9, 15, 21, 27, 33, 39, 45]]
    assert sample_views(36, 8, 2, "ssv2").tolist() == [[0, 4, 9, 13, 18, 22, 27, 31], [2, 6, 11, 15, 20, 24, 29, 33]]
    assert sample_views(3, 8, 1, "ssv2")[0].tolist() == [0, 0, 0, 1, 1, 1, 2, 2]
    for total, frames, clips in ((48, 8, 1), (10, 4, 3)):
        expected = sample_frame_indices(total, frames, clips)
        assert (sample_views(total, frames, clips, "kinetics") == expected).all()
