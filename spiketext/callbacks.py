"""Floor 0: what happens beside the steps of a training: its bar, its clock, and when it stops."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from transformers import EarlyStoppingCallback, TrainerCallback
from transformers.trainer_callback import ExportableState, ProgressCallback


class LossBar(ProgressCallback):
    """The progress bar, with every loss term behind it instead of a line for each."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Show the newest losses and scores."""
        shown = {k: f"{v:.3g}" for k, v in (logs or {}).items() if isinstance(v, float) and k in _shown(logs or {})}
        if self.training_bar is not None and shown:
            self.training_bar.set_postfix(shown, refresh=False)


def _shown(logs: dict[str, Any]) -> set[str]:
    hidden = {"epoch", "learning_rate", "grad_norm", "total_flos", "train_runtime", "train_loss"}
    return {name for name in logs if name not in hidden and not name.endswith("per_second") and "runtime" not in name}


class EarlyStop(EarlyStoppingCallback):
    """Early stopping that a resumed run remembers: stopped before it was killed, it takes no step more."""

    def on_train_begin(self, args, state, control, **kwargs):
        """The counter is the checkpoint's, and so is the best step; where that lies is not: a run may have moved.

        Raises ValueError when the best checkpoint is gone.
        """
        super().on_train_begin(args, state, control, **kwargs)
        if state.best_global_step:
            best = Path(args.output_dir) / f"checkpoint-{state.best_global_step}"
            state.best_model_checkpoint = str(best)
            if not (best / "model.safetensors").is_file():
                raise ValueError(f"checkpoint {best}, the best so far: is gone; put it back, or remove {best.parent}, "
                                 "and the same command begins again")  # fmt: skip
        if self.early_stopping_patience_counter >= self.early_stopping_patience:
            control.should_training_stop = True


class AfterStep(TrainerCallback):
    """Lets a network that has `after_step` put its weights in order after every optimiser step.

    What was learned up to a checkpoint is logged with it, so that the history of a resumed run is that of one never
    stopped.
    """

    def on_step_end(self, args, state, control, model=None, **kwargs):
        """Before the validation and the checkpoint."""
        control.should_log |= control.should_save
        getattr(getattr(model, "model", None), "after_step", lambda: None)()


class Clock(TrainerCallback, ExportableState):
    """Seconds of training, over all resumptions."""

    def __init__(self, elapsed: float = 0.0):
        self.elapsed = elapsed
        self.since: float | None = None

    def on_train_begin(self, args, state, control, **kwargs):
        """Start."""
        self.since = time.monotonic()

    @property
    def seconds(self) -> float:
        """Up to now."""
        return self.elapsed + (time.monotonic() - self.since if self.since is not None else 0.0)

    def state(self) -> dict:
        """For the checkpoint."""
        return {"args": {"elapsed": self.seconds}, "attributes": {}}
