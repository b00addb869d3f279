"""Where the weights of a scorer come from: the host, the settings of training, and figures of the calibration split."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Origin:
    """Saved beside the weights, told by the model card.

    Args:
        host: that the scorer was trained through: a hub id, the name of a folder, or "embedded".
        settings: of the training, as JSON holds them.
        calibration: figures of the weights that were kept: `kl_aware_64` is the divergence from the full model's
            answers in nats per answer token, `accuracy_aware_64` the share of right answers, with the question and 64
            tokens.
    """

    host: str
    settings: dict[str, Any] = field(default_factory=dict)
    calibration: dict[str, float] = field(default_factory=dict)
