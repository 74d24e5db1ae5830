"""Counted operations against networks whose count is known."""

from fmcore.network.build import MLP, build
from fmcore.network.flops import flops_per_evaluation
from fmcore.network.images import DiT
from fmcore.network.store import Model


def of(settings, shape):
    return flops_per_evaluation(Model(build(settings, shape, seed=0), {}, ""))


def test_an_mlp_costs_two_operations_for_each_weight_of_its_matrices():
    settings = MLP(width=16, depth=3, time_features=8)
    network = build(settings, (2, 3), seed=0)
    matrices = [p for p in network.parameters() if p.ndim == 2]
    wanted = 2 * sum(p.numel() for p in matrices)
    assert flops_per_evaluation(Model(network, {}, "")) == wanted


def test_attention_is_counted_whatever_kernel_a_device_has():
    """Products of queries and keys grow as the square of the tokens: 4 width a block and pair."""
    settings = DiT(name="dit", heads=2, head=16, depth=2, patch=2)
    tokens = [16, 64, 256]
    counts = [of(settings, (1, side, side)) for side in (8, 16, 32)]
    slopes = [(b - a) / (m - n) for a, b, n, m in zip(counts, counts[1:], tokens, tokens[1:])]
    square = (slopes[1] - slopes[0]) / (tokens[2] - tokens[0])
    assert square == settings.depth * 4 * settings.heads * settings.head
