"""Settings that are valid alone but cannot work together: known from params.yaml, before any stage.

What depends on files of the user's own (their shape, their labels) is checked by the stage that
reads them.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from flows.params.adapters import impossible_adapters
from flows.params.adopted import teacher_of
from flows.params.codec import impossible_codec, learned, no_images
from flows.params.guidance import impossible_guidance, takes_conditions
from flows.params.pieces import impossible_pieces
from fmcore.dataset.kinds import Noise
from fmcore.dataset.samples import Known
from fmcore.features.extractor import FeatureSettings
from fmcore.matching.times import Grid, Point
from fmcore.network.build import Network
from fmcore.network.images import DiT, MMDiT, UNet
from fmcore.sampling.pairs import SolverOfPairs
from fmcore.settings import ReflowError
from fmcore.solve.solver import Solver
from fmcore.training.fit import Train
from fmcore.training.losses import Perceptual

if TYPE_CHECKING:
    from flows.params.load import Params

Mistake = tuple[tuple[str, ...], str]
"""The keys of a setting, and what is wrong with it."""

OWN_VELOCITY = ("improved", "shortcut", "lagrangian")
"""Rules of flow maps whose aim on a span is made of the network's own velocity."""
FEWEST = 4
"""Samples of a data set: the yardstick compares two halves, and a half needs a variance."""


def impossible(params: "Params") -> Iterator[Mistake]:
    """Yield (keys, mistake) for settings that a stage would refuse, or that would mean nothing."""
    known = params.data.known()
    if known.samples is not None and known.samples < FEWEST:
        yield ("data", "samples"), f"{known.samples} cannot be cut in two halves; at least {FEWEST}"
    yield from impossible_codec(params, known)
    yield from _features(params, known)
    known = learned(params, known)  # a network, a training and pairs are of latents
    yield from _network(params, ("network",), params.network, known)
    if params.without_gpu and params.without_gpu.network:
        yield from _network(params, ("without_gpu", "network"), params.without_gpu.network, known)
    for name in params.rounds:
        yield from _round(params, name, known)
    yield from _pairs_of_students(params)
    yield from _scores(params)
    yield from _source(params)
    yield from impossible_guidance(params)
    yield from _averages(params)
    yield from impossible_adapters(params)
    yield from _store(params, known)
    yield from impossible_pieces(params)


def _network(
    params: "Params", place: tuple[str, ...], network: Network, known: Known
) -> Iterator[Mistake]:
    """A network that cannot be built for the samples, or whose labels the data does not have."""
    if known.shape is not None and isinstance(network, UNet | DiT | MMDiT):
        try:
            network.check_shape(known.shape)
        except ReflowError as error:
            yield place, str(error)
    if takes_conditions(network) and params.data.conditions is None:
        yield (*place, "conditions"), "the data has none; set data.conditions, or leave it out"
    if known.classes is None or not network.classes or params.data.conditions:
        return
    if not known.classes:
        yield (*place, "classes"), "this data has no labels; set it to 0"
    elif network.classes < known.classes:
        yield (
            (*place, "classes"),
            f"{network.classes} is below the {known.classes} classes of this data; raise it, or set"
            " it to 0 to ignore labels",
        )


def _features(params: "Params", known: Known) -> Iterator[Mistake]:
    """Features that the samples do not have."""
    features, place = params.yardstick.features, ("yardstick", "features", "kind")
    if not isinstance(features, FeatureSettings) or features.kind == "identity":
        return
    if features.kind == "classifier":
        if known.image is False or known.classes == 0:
            instead = "lite0 or identity" if known.image else "identity"
            yield place, f"classifier needs images with labels, this data has none; use {instead}"
        return
    if known.image is False:
        yield place, f"{features.kind} needs images, this data has none; use identity"
    if features.kind in ("inception", "dinov2") and features.weights is None:
        what = f"{features.kind} needs the path of its weights; nothing is downloaded"
        yield ("yardstick", "features", "weights"), what


def _round(params: "Params", name: str, known: Known) -> Iterator[Mistake]:
    """A training that its coupling, its network or the data does not allow."""
    round_ = params.rounds[name]
    train, place = round_.train, ("rounds", name, "train")
    independent = round_.coupling not in params.couplings
    if train is None:
        return
    if independent and train.drop_longest:
        what = "the independent coupling has no fixed pairs to drop; leave it out"
        yield (*place, "drop_longest"), what
    if not independent and train.pairing.name != "independent":
        what = f"pairs anew what coupling {round_.coupling!r} has paired; only for independent"
        yield (*place, "pairing"), what
    if independent and train.student:
        what = (
            f"{train.time.name} makes a student, which learns from the pairs of another round: on"
            " the independent coupling it learns the mean of the data; name a generated coupling"
        )
        yield (*place, "time"), what
    if train.flip and (known.image is False or (known.shape and len(known.shape) != 3)):
        yield (*place, "flip"), f"mirrors images, and {no_images(params)}; leave it out"
    if train.batch % train.processes:
        what = f"{train.batch} has no {train.processes} equal parts; make it a multiple"
        yield (*place, "batch"), what
    elif train.accumulate > train.batch // train.processes:
        own = train.batch // train.processes
        what = f"{own} pairs of a process cannot be cut in {train.accumulate} pieces; lower it"
        yield (*place, "accumulate"), what
    if isinstance(train.loss, Perceptual):
        if known.image is False:
            yield (*place, "loss"), f"perceptual compares images, and {no_images(params)}; use mse"
        elif why := train.loss.refusal(train.objective, known.shape):
            yield (*place, "loss"), why
    yield from _mean_flow(train, place)
    yield from _labels(params, name, train, place)


def _mean_flow(train: Train, place: tuple[str, ...]) -> Iterator[Mistake]:
    """A flow map without spans, or a rule of one where none is learned."""
    rule = train.map.name
    if train.objective != "mean_flow":
        if "map" in train.model_fields_set:
            what = f"{rule} is a rule of objective mean_flow, got {train.objective}; leave map out"
            yield (*place, "map"), what
        return
    if rule in OWN_VELOCITY and train.spans == 1:
        what = f"1 leaves no rows without a span, of which {rule} learns the velocity; lower it"
        yield (*place, "spans"), what
    if rule != "mean_flow" and train.spans == 0:
        yield (*place, "spans"), f"0 leaves {rule} no span to learn; raise it"
    if train.recompute:
        what = (
            "mean_flow differentiates forward, which torch.utils.checkpoint does not pass; leave it"
            " out, and use accumulate to save memory"
        )
        yield (*place, "recompute"), what
    if train.student:
        what = (
            f"{train.time.name} leaves no spans between times, which mean_flow learns; use another"
            " law"
        )
        yield (*place, "time"), what


def _labels(params: "Params", name: str, train: Train, place: tuple[str, ...]) -> Iterator[Mistake]:
    network = params.network
    if network.classes or takes_conditions(network) or teacher_of(params, name):
        return
    if train.label_dropout and "label_dropout" in train.model_fields_set:
        yield (
            (*place, "label_dropout"),
            "there are no labels; set network.classes or network.conditions, or leave it out",
        )


def _pairs_of_students(params: "Params") -> Iterator[Mistake]:
    """Pairs of a student at times that it has not learned."""
    for key, coupling in params.couplings.items():
        if coupling.import_ is not None:
            continue
        train, solver = params.rounds[coupling.round].train, coupling.solver
        law = train.time if train else None
        if not isinstance(law, Point | Grid) or (isinstance(law, Point) and law.at < 1):
            continue
        steps = law.steps if isinstance(law, Grid) else 1
        if not _on_grid(solver, steps):
            what = (
                f"round {coupling.round!r} is a student of {steps} Euler steps and has learned no"
                f" other times; use {{name: euler, steps: {steps}}}"
            )
            yield ("couplings", key, "solver"), what


def _on_grid(solver: SolverOfPairs | None, steps: int) -> bool:
    """Say whether a solver evaluates at some of the times 1/steps, 2/steps, ..., 1 only."""
    if not isinstance(solver, Solver) or solver.name != "euler":
        return False
    return solver.shift == 1 and solver.times is None and not steps % solver.steps


def _scores(params: "Params") -> Iterator[Mistake]:
    """Reverse SDEs where no round has a score."""
    having = (
        r.coupling not in params.couplings
        and (r.train is None or r.train.pairing.name == "independent")
        and (r.train is None or r.train.loss.learns_mean)
        for r in params.rounds.values()
    )
    if params.evaluate.sde and not any(having):
        what = (
            "no round has a score: none is trained on independent pairs with a loss that learns the"
            " mean (mse); leave it out"
        )
        yield ("evaluate", "sde"), what


def _source(params: "Params") -> Iterator[Mistake]:
    """A source that is no noise: other shapes, units, and what is known of noise alone."""
    source = params.source
    if isinstance(source, Noise):
        return
    if source.scale.name != "none":
        yield ("source", "scale"), "both sides are mapped by data.scale; remove source.scale"
    shapes = [params.data.known().shape, source.known().shape]
    if None not in shapes and shapes[0] != shapes[1]:
        given = " and ".join(str(list(shape or ())) for shape in shapes)
        yield ("source",), f"data and source need one shape, got {given}"
    if params.evaluate.likelihood is not None:
        what = "needs the density of the source, known for noise alone; leave it out, or the source"
        yield ("evaluate", "likelihood"), what
    if params.evaluate.sde:
        what = "needs the score, which a flow from noise has alone; leave it out, or the source"
        yield ("evaluate", "sde"), what


def _averages(params: "Params") -> Iterator[Mistake]:
    """Power averages of a round that keeps none."""
    wanted: list[tuple[tuple[str, ...], str, str | float]] = []
    for key, coupling in params.couplings.items():
        wanted.append((("couplings", key, "weights"), coupling.round, coupling.weights))
    for key, own in params.rounds.items():
        if own.train:
            wanted.append((("rounds", key, "train", "start_from"), own.init, own.train.start_from))
    keeps = any(own.train is None or own.train.power_ema for own in params.rounds.values())
    if not keeps and (lengths := [w for w in params.evaluate.weights if isinstance(w, float)]):
        what = (
            f"{lengths[0]:g} is a power average, and no round keeps any; set train.power_ema of one"
        )
        yield ("evaluate", "weights"), what
    for place, name, weights in wanted:
        maker = params.rounds.get(name)
        kept_none = maker is None or (maker.train is not None and maker.train.power_ema is None)
        if isinstance(weights, float) and kept_none:
            kept = f"set rounds.{name}.train.power_ema, or " if maker else ""
            what = f"{weights:g} is a power average, and {name} keeps none; {kept}take ema or raw"
            yield place, what


def _store(params: "Params", known: Known) -> Iterator[Mistake]:
    """Pairs that cannot be stored as asked."""
    noise = isinstance(params.source, Noise)
    for key, coupling in params.couplings.items():
        place, store = ("couplings", key, "store"), coupling.store
        if why := store.refusal(noise=noise, mix=coupling.mix):
            yield (*place, "source"), why
        if store.target == "uint8" and store.low is None and known.image is False:
            yield (*place, "target"), "uint8 needs the range of this data; give low and high"
