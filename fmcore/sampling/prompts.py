"""A flow whose conditions are texts that are given now."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

from fmcore.conditions.encoders import beside
from fmcore.sampling.flow import Flow
from fmcore.settings import ReflowError


def prompted(flow: Flow, texts: Sequence[str]) -> Flow:
    """Return a flow whose conditions are these texts, numbered from 0: any texts, once embedded.

    Raises ReflowError for a flow that was not made with texts.
    """
    if flow.made_of is None or getattr(flow.made_of[0].network, "given", None) is None:
        raise ReflowError(
            "--prompt: this round takes no texts; leave it out, or train one on data.conditions"
        )
    if flow.table is None:
        raise ReflowError(
            "--prompt: the table of this round's texts is too large for the model's folder and not"
            " at hand; prepare the data, or use --label"
        )
    model, compute = flow.made_of
    network: Any = deepcopy(model.network)
    known = beside(texts, flow.table)
    network.given.take(known)
    return replace(Flow.of(replace(model, network=network), compute), classes=len(known))
