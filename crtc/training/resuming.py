"""Going on where a run stopped, if it is the same run."""

import json
from collections.abc import Mapping
from typing import Any

import lightning


def check_same(checkpoint: Mapping[str, Any], module: lightning.LightningModule) -> None:
    """Compare the settings of a checkpoint with those asked for.

    Raises:
        ValueError: if they differ, since the weights would not be what the settings say.
    """
    stored, given = (_plain(settings) for settings in (checkpoint["hyper_parameters"], module.hparams))
    other = sorted(name for name in {*stored, *given} if stored.get(name) != given.get(name))
    if other:
        told = ", ".join(f"{name} {stored.get(name)!r} and not {given.get(name)!r}" for name in other)
        raise ValueError(f"the run to go on with had {told}, expected the same settings or another folder")


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON has them, without what the command line leaves there."""
    kept = {name: value for name, value in settings.items() if not name.startswith("_")}
    return dict(json.loads(json.dumps(kept, default=str)))


class LastLook(lightning.Callback):
    """Ends a run with a validation and a checkpoint, also when its last step is no multiple of their interval."""

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Lightning validates when it is told to stop."""
        if pl_module.done >= pl_module.hparams["steps"]:
            trainer.should_stop = True
