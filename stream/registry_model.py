"""A batch detector in a topology, as data: which registry model, how it is trained, swapped, trusted, retrained."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import msgspec
from msgspec import structs
from msgspec.structs import force_setattr

from detectors.base import TrainableDetector
from stream.follow_rule import Follow
from stream.gates import PromoteWhen, RollbackWhen
from stream.references import Pin, is_digest, parse_uri
from stream.retrain_rule import Retrain
from stream.settings import Settings, refuse

__all__ = ["RegistryModel"]


class RegistryModel(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A batch detector: trained before, its weights loaded from the model registry."""

    model: str
    """`models:/name@alias` or `models:/name/version`; resolved once, then pinned in the checkpoint."""
    threshold: float | None = None
    """None takes the threshold that was chosen while training."""
    fit: TrainableDetector | None = None
    """How `mmlw train` trains it."""
    inputs: tuple[str, ...] = ()
    """The sensors and features that it is trained on and shown, in this order; none named: all of them."""
    machines: str | tuple[str, ...] = ()
    """The machines that it is trained on and scores, as a pattern (`pump-*`) or several; none named: all of them."""
    promote_when: PromoteWhen | None = None
    """What a shadow must have shown before it may take this place; None: `promote` is enough."""
    rollback_when: RollbackWhen | None = None
    """When the model before takes over again by itself."""
    retrain: Retrain | None = None
    """When it is trained anew by itself: a challenger, never what serves."""
    follow: Follow | None = None
    """Another version is swapped in when the alias moves in the registry; None: only by command."""
    trust: str | tuple[str, ...] = ()
    """Digests (`sha256:...`) of registered models that are code (pickled, or any that MLflow loads) and may run, in a
    process of their own. None: only weights that are data."""
    method: Literal["predict", "decision_function", "score_samples"] = "predict"
    """What is asked of such a model."""
    anomalous: Literal["high", "low"] | None = None
    """Which of its scores are anomalous. They are turned so that high ones are; what is then below 0 counts as 0."""

    def __post_init__(self) -> None:
        force_setattr(self, "trust", (self.trust,) if isinstance(self.trust, str) else tuple(self.trust))
        force_setattr(self, "inputs", tuple(self.inputs))
        refuse(self.check(structs.asdict(self)))

    @staticmethod
    def check(settings: Settings) -> Iterator[str]:
        """See `Settings`."""
        try:
            address = parse_uri(settings.get("model", "models:/x@alias"))
        except ValueError as error:
            yield f"model: {error}"
        else:
            if address.alias is None and settings.get("follow") is not None:
                yield "follow: the model is one version, which does not move; name an alias: models:/NAME@ALIAS"
        trust = settings.get("trust", ())
        for digest in (trust,) if isinstance(trust, str) else trust:
            if not is_digest(digest):
                yield f'trust: "{digest}" is not sha256: and 64 hexadecimal digits'
        if trust and settings.get("anomalous", "") is None:
            yield "anomalous: say high or low: which scores of the trusted model are anomalous"
        if settings.get("retrain") is not None:
            if settings.get("fit", "") is None:
                yield "retrain: add fit: {kind: …} to say how it is trained"
            if str(settings.get("model", "")).endswith("@challenger"):
                yield "retrain: what is trained is called challenger; name another alias in model, such as champion"

    @property
    def pin(self) -> Pin:
        """What the shelf must know to run it where it is code."""
        return Pin(tuple(self.trust), self.method, self.anomalous or "high", self.threshold)

    @property
    def name(self) -> str:
        """The registered model's name."""
        return parse_uri(self.model).name

    @property
    def alias(self) -> str | None:
        """The alias asked for, None where a version is named."""
        return parse_uri(self.model).alias
