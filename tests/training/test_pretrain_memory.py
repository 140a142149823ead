"""The benchmark of a pretraining step: computed memory is that of a real step, arithmetic that of the parts."""

import importlib.util
import sys
from pathlib import Path

import pytest
from tiny import tiny_config

from training.data.sampling import ClipShape


BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def memory(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location("pretrain_memory", BENCHMARKS / "pretrain_memory.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["training_memory"]


def tiny_pair(memory):
    """A recipe, a student and a teacher of a size for tests."""
    args = memory.recipe()
    args.distillation.student_budgets, args.teacher.teacher_tokens, args.distillation.aligned_layers = [48, 24], 48, 2
    theirs = tiny_config(hidden_size=48, num_hidden_layers=4, num_attention_heads=3, num_pooling_heads=3)
    told = {"alignment_layers": [0, 1], "teacher_hidden_size": 48, "teacher_projection_dim": theirs.projection_dim}
    return args, tiny_config(token_budgets=[48], image_size=112, **told), theirs


def test_a_computed_step_takes_what_a_real_one_does(memory):
    args, ours, theirs = tiny_pair(memory)
    what = (ClipShape(4, 112), 4, False)
    computed = memory.computed(args, ours, theirs, *what)
    with memory.LiveStorages() as real:
        memory.take_steps(args, memory.blank(ours, theirs), *what, "cpu")
    assert computed == pytest.approx(real.peak, rel=0.03)
    assert computed < memory.computed(args, ours, theirs, ClipShape(4, 112), 8, False) < 2 * computed


def test_arithmetic(memory):
    """Of the one shape of 4 x 8 x 8 patches: patches once, budgets each, three times for the backward pass."""
    args, ours, theirs = tiny_pair(memory)
    shape = ClipShape(4, 112)
    teacher, student = memory.multiply_adds(args, ours, theirs, [shape])
    assert teacher == memory.forward_cost(theirs, shape, [48])
    one, other = (memory.forward_cost(ours, shape, [budget]) for budget in (48, 24))
    embedding = 256 * 3 * ours.patch_size**2 * ours.hidden_size
    assert student == 3 * (one + other - embedding)
