"""The chain at the size that a machine without a GPU can do, if its parameters say one."""

from typing import Any

from flows.params import Params, Round, WithoutGpu

LEAST_SAMPLES = 256


def sized(params: Params) -> Params:
    """Return the parameters; cut down by `compute.without_gpu` where there is no GPU."""
    cut = params.compute.without_gpu
    if cut is None or params.compute.start().type != "cpu":
        return params
    return reduced(params, cut)


def reduced(params: Params, cut: WithoutGpu) -> Params:
    """Return the chain cut down: steps, pairs, samples, batch and network."""
    yardstick, evaluate = params.yardstick, params.evaluate
    whole: Params = _with(
        params,
        network=cut.network or params.network,
        rounds={name: _round(r, cut) for name, r in params.rounds.items()},
        couplings={
            key: _with(c, pairs=_part(c.pairs, cut.share)) for key, c in params.couplings.items()
        },
        yardstick=_with(yardstick, samples=_part(yardstick.samples, cut.share, LEAST_SAMPLES)),
        evaluate=_with(
            evaluate,
            trajectories=_part(evaluate.trajectories, cut.share, LEAST_SAMPLES),
            reconstructions=_part(evaluate.reconstructions, cut.share, LEAST_SAMPLES),
        ),
    )
    return whole


def said(cut: WithoutGpu) -> str:
    """Return in words what `reduced` does."""
    batch = f", batch {cut.batch} at most" if cut.batch else ""
    network = f", a smaller {cut.network.name}" if cut.network else ""
    return f"no GPU: {cut.share:g} of steps, pairs and samples{batch}{network}"


def _round(round_: Round, cut: WithoutGpu) -> Round:
    """Cut a round down; warm-up and averaging keep their part of it."""
    train = round_.train
    changed: Round = _with(
        round_,
        train=_with(
            train,
            steps=_part(train.steps, cut.share),
            warmup=_part(train.warmup, cut.share, 0),
            ema=min(train.ema, max(0.9, 1 - (1 - train.ema) / cut.share)),
            batch=min(train.batch, cut.batch or train.batch),
        ),
    )
    return changed


def _part(number: int, share: float, least: int = 1) -> int:
    return max(min(least, number), round(share * number))


def _with(settings: Any, **changes: Any) -> Any:
    return settings.model_copy(update=changes)
