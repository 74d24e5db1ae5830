"""The network that a round trains, made of the one that it starts from; pairs that do not suit."""

from collections.abc import Iterator

from fmcore.network.adapter import adapt
from fmcore.network.build import VelocityNetwork, with_spans
from fmcore.network.outside import check_null
from fmcore.settings import ReflowError, derive_seed
from fmcore.training.fit import Train
from fmcore.training.losses import Perceptual


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


def check_pairs(
    settings: Train,
    network: VelocityNetwork,
    *,
    independent: bool,
    kept: int,
    scaled: bool,
    name: str,
) -> None:
    """Raise ReflowError for pairs on which these settings cannot train the network.

    The pairs are called `name`, are `independent` or keep `kept` pieces of each path, and are
    `scaled` if their units are not the data's own.
    """
    kept = 1 if independent else kept
    if kept % settings.pieces:
        raise ReflowError(
            f"train.pieces {settings.pieces}: {name} keeps {kept} pieces of each path; make it"
            " again (sample or import) with store.pieces, a multiple"
        )
    if settings.label_dropout:
        check_null(network.settings, f"train.label_dropout {settings.label_dropout:g}")
    if settings.pairing.name != "independent" and not independent:
        raise ReflowError(
            f"train.pairing {settings.pairing.name}: {name} has pairs of its own, which it would"
            " undo; use it with the independent coupling"
        )
    if settings.drop_longest and independent:
        raise ReflowError("train.drop_longest: the independent coupling has no fixed pairs to drop")
    if isinstance(settings.loss, Perceptual):
        settings.loss.ready(settings.objective, network.shape, scaled=scaled)
    if settings.flip and len(network.shape) != 3:
        shape = list(network.shape)
        raise ReflowError(f"train.flip: mirrors images [C, H, W], samples here are {shape}")


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
