"""The network that a round trains, made of the one that it starts from."""

from collections.abc import Iterator

from fmcore.network.adapter import adapt
from fmcore.network.build import VelocityNetwork, with_spans
from fmcore.settings import ReflowError, derive_seed
from fmcore.training.fit import Train


def network_to_train(start: VelocityNetwork, settings: Train, *, seed: int) -> VelocityNetwork:
    """Return the network that a training changes; with an adapter it is a copy of `start`.

    An input for spans that objective mean_flow adds is trained beside the adapter. Raises
    ReflowError for an adapter that the settings or the network do not allow.
    """
    network = with_spans(start) if settings.objective == "mean_flow" else start
    if settings.adapter is None:
        return network
    for key, what in without_adapter(settings):
        raise ReflowError(f"train.{key}: {what}")
    adapted = adapt(network, settings.adapter, seed=derive_seed(seed, "adapter"))
    if network is not start:
        adapted.get_submodule("span").requires_grad_(True)
    return adapted


def without_adapter(settings: Train) -> Iterator[tuple[str, str]]:
    """Yield (key, mistake) for settings that a training of an adapter has not."""
    if settings.power_ema is not None:
        yield (
            "power_ema",
            "its averages are sums of whole weights, and of an adapter two factors are averaged;"
            " leave it or adapter out",
        )
    if settings.shard == "full":
        yield (
            "shard",
            "full divides the weights that are trained, which of an adapter are few; use replicate,"
            " or leave adapter out",
        )
