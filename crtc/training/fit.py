"""`crtc fit` and `crtc host`: LightningCLI with progress, checkpoints, exact resume, early stop and a W&B run."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import WandbLogger

from crtc import tracking
from crtc.dtypes import fast_dtype, told
from crtc.training.host import HostTraining
from crtc.training.resuming import LastLook, check_same
from crtc.training.scorer import ScorerTraining

BEST, LAST = "best", "last"


class Patience(EarlyStopping):
    """Early stop as patient as it is asked to be now, not as it was before an interruption."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """How long there was no gain, and what was best."""
        super().load_state_dict({**state_dict, "patience": self.patience})


def trainer_for(
    folder: Path | str,
    *,
    monitor: str | None,
    every: int,
    patience: int | None = None,
    track: bool = True,
    **settings: Any,
) -> lightning.Trainer:
    """A trainer that keeps everything under `folder` and can go on from there.

    Args:
        folder: of checkpoints, logs and the W&B run.
        monitor: validation figure that chooses the best checkpoint; None keeps the last alone.
        every: steps between validations, each followed by a checkpoint.
        patience: validations without gain in it before the run stops; None goes on to the end.
        track: whether to log to W&B.
        settings: of `lightning.Trainer`.

    Raises:
        ValueError: if `every` or `patience` is not positive, or the trainer is to use several devices.
    """
    if every < 1 or (patience is not None and patience < 1):
        raise ValueError(f"every is {every} and patience {patience}, expected at least 1 each")
    _check_alone(settings)
    folder = Path(folder)
    last = folder / f"{LAST}.ckpt"
    callbacks: list[lightning.Callback] = [TQDMProgressBar(refresh_rate=5), LastLook()]
    if monitor is not None:
        callbacks.append(ModelCheckpoint(folder, filename=BEST, monitor=monitor, enable_version_counter=False))
        if patience is not None:
            callbacks.append(Patience(monitor, patience=patience, min_delta=1e-4, check_on_train_epoch_end=False))
    # Of its own, since `save_last` writes only when the best one is written; behind it, to know which one that was.
    callbacks.append(ModelCheckpoint(folder, filename=LAST, enable_version_counter=False))
    logger: WandbLogger | bool = False
    if track:
        run = tracking.run_id(folder, anew=not last.exists())
        options = tracking.settings("fit", folder)
        logger = WandbLogger(save_dir=options.pop("dir"), log_model=False, id=run, resume="allow", **options)
        logger.log_hyperparams({"every": every, "patience": patience, "trainer": settings})
    defaults = {
        "max_epochs": 1,
        "devices": 1,
        "val_check_interval": every,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 10,
        "enable_model_summary": False,
        "gradient_clip_val": 1.0,
    }
    return lightning.Trainer(default_root_dir=folder, callbacks=callbacks, logger=logger, **{**defaults, **settings})


def _check_alone(settings: Mapping[str, Any]) -> None:
    """Raise `ValueError` for what would show a batch to several devices, or count steps otherwise than by batches."""
    devices = settings.get("devices", 1)
    if devices not in (1, "1") and not (isinstance(devices, list) and len(devices) == 1):
        raise ValueError(f"trainer.devices is {devices!r}, expected 1, or a list of one index")
    for name in ("num_nodes", "accumulate_grad_batches"):
        if settings.get(name, 1) != 1:
            raise ValueError(f"trainer.{name} is {settings[name]!r}, expected 1")


def fit_scorer(
    module: ScorerTraining,
    folder: Path | str,
    *,
    every: int = 100,
    patience: int | None = 6,
    track: bool = True,
    **settings: Any,
) -> Path:
    """Train, going on where an interrupted run in `folder` stopped; give the folder of the best scorer.

    Raises:
        ValueError: if the run in `folder` had other settings or stopped early with less patience, `every` or
            `patience` is not positive, the trainer is to use several devices, or the loss is not finite.
    """
    folder = Path(folder)
    done = folder / "scorer"
    trainer = trainer_for(folder, monitor="calibration/kl", every=every, patience=patience, track=track, **settings)
    last = folder / f"{LAST}.ckpt"
    if last.exists():
        found = torch.load(last, weights_only=False, map_location="cpu")
        check_same(found, module)  # also where nothing is left to train
        if not _stopped_early(found, patience, folder):
            trainer.fit(module, ckpt_path=str(last))
    else:
        trainer.fit(module)
    best = torch.load(folder / f"{BEST}.ckpt", weights_only=False, map_location="cpu")
    module.load_state_dict(best["state_dict"])
    module.export(done, best.get("calibration"), best.get("host_dtype"))
    if track and isinstance(trainer.logger, WandbLogger):
        tracking.log_folder(trainer.logger.experiment, done, "scorer", "scorer")
        trainer.logger.experiment.finish()
    return done


def _stopped_early(checkpoint: Mapping[str, Any], patience: int | None, folder: Path) -> bool:
    """Whether the run that a checkpoint is of ended for want of gain; Lightning would begin it again."""
    for state in checkpoint["callbacks"].values():
        if state.get("wait_count", -1) >= state.get("patience", 0):
            if patience is None or patience > state["patience"]:
                raise ValueError(
                    f"patience is {patience} and the run in {folder} stopped early after {state['patience']} "
                    "validations without gain, expected the same patience or another folder"
                )
            return True
    return False


class StageCLI(LightningCLI):
    """`--config` stacks YAML files that hold only what differs from the defaults in the code."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Where results go, and how often to look at the calibration split."""
        parser.add_argument("--folder", type=str, default="runs/fit", help="checkpoints, logs and the scorer")
        parser.add_argument("--every", type=int, default=100, help="steps between validations")


class FitCLI(StageCLI):
    """The same with an early stop."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """How long to wait for gain."""
        super().add_arguments_to_parser(parser)
        parser.add_argument("--patience", type=int, default=6, help="validations without gain before stopping early")


def _parsed(kind: type[StageCLI], module: type[lightning.LightningModule], arguments: list[str]) -> StageCLI:
    with warnings.catch_warnings():  # it takes any arguments in Python for a test
        warnings.filterwarnings("ignore", "LightningCLI's args parameter")
        return kind(module, args=arguments, run=False, save_config_callback=None, trainer_defaults={"logger": False})


def _trainer_settings(cli: StageCLI) -> dict[str, Any]:
    """What the user asked of `lightning.Trainer` beside the defaults.

    Raises:
        ValueError: for what `folder`, `every` and `patience` say here.
    """
    defaults = cli.parser.get_defaults().trainer
    given = {
        name: cli.config_init.trainer[name]
        for name, value in vars(cli.config.trainer).items()
        if value != defaults[name]
    }
    taken = sorted({"callbacks", "logger", "default_root_dir", "val_check_interval", "max_epochs"} & set(given))
    if taken:
        raise ValueError(f"trainer.{taken[0]} is {given[taken[0]]!r}, expected --folder, --every or --patience instead")
    return given


def fit(arguments: list[str]) -> None:
    """The command line of `crtc fit`."""
    cli = _parsed(FitCLI, ScorerTraining, arguments)
    config = cli.config
    settings = _trainer_settings(cli)
    if cli.model.hparams["precision"] == "auto":
        print(f"the host runs in {told(cli.trainer.strategy.root_device)}")
    done = fit_scorer(cli.model, config.folder, every=config.every, patience=config.patience, **settings)
    print(f"wrote the scorer to {done}; `crtc evaluate --scorer {done}` compares it")


def fit_host(arguments: list[str]) -> None:
    """The command line of `crtc host`: one stage of host training."""
    cli = _parsed(StageCLI, HostTraining, arguments)
    folder = Path(cli.config.folder)
    device, settings = cli.trainer.strategy.root_device, _trainer_settings(cli)
    if "precision" not in settings:  # float16 would need its gradients scaled, which two optimisers do not
        settings["precision"] = "bf16-mixed" if fast_dtype(device) == torch.bfloat16 else "32-true"
        print(f"trainer.precision is {settings['precision']}: {told(device)}")
    trainer = trainer_for(folder, monitor=None, every=cli.config.every, **{"gradient_clip_val": None, **settings})
    last = folder / f"{LAST}.ckpt"
    trainer.fit(cli.model, ckpt_path=str(last) if last.exists() else None)
    torch.save({"state_dict": cli.model.state_dict()}, folder / "weights.pt")
    cli.model.host.to(torch.bfloat16).save_pretrained(folder / "host")
    from crtc.hosts.embedded import make_processor

    make_processor().save_pretrained(folder / "host")
    print(f"wrote the host to {folder / 'host'}")
