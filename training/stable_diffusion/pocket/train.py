"""Training a stage of the pocket model: interruptible, resumable, and repeatable from one seed.

All randomness of step k comes from generators that are seeded with (seed, purpose, k). So no random state has to be
saved, and a resumed run sees exactly what an uninterrupted one would have seen.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from training import checkpoint, configuration
from training.averaging import ema_update
from training.checkpoint import load_optimizer_tensors, one_line, optimizer_tensors
from training.errors import CheckpointError, TrainingError
from training.interrupt import StopRequest
from training.muon import Muon
from training.report import Reporter
from training.stable_diffusion.pocket.checkpoint import STATE, STATE_NAME
from training.stable_diffusion.pocket.config import (
    DiffusionTraining,
    JudgeTraining,
    OptimizerConfig,
    TextTraining,
    TrainConfig,
    VAETraining,
)


class Stage(Protocol):
    """What one stage of the training learns and from what."""

    name: str
    config: TrainConfig
    optimizer: OptimizerConfig
    device: torch.device
    inputs: str  # SHA-256 of what it learns from, which must not change within a run
    shares: dict[str, float]  # of the rates, for parameters whose names begin so

    @property
    def network(self) -> nn.Module: ...

    def sections(
        self, config: TrainConfig
    ) -> tuple[VAETraining | TextTraining | DiffusionTraining | JudgeTraining, Any]:
        """The two parts of a configuration that the stage depends on: its training and its networks."""

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        """The loss of one step, and other numbers worth a curve."""

    def preview(self, average: Any) -> Tensor:
        """A sheet to look at, uint8 (3, H, W), made with the averaged network."""

    def publish(self, average: Any, metadata: dict[str, str]) -> None:
        """Write what others are to use, if there is anything yet; called after each save."""


@dataclass(frozen=True)
class Run:
    """Where and how a run keeps its files.

    Attributes:
        folder: gets all files.
        resume: continue from the stage's state if there is one.
        deadline: ``time.monotonic()`` at which to stop by itself.
        save_every: seconds between two saves.
        preview_every: seconds between two sheets of samples.
        progress: draw a progress bar.
    """

    folder: Path
    resume: bool = False
    deadline: float = math.inf
    save_every: float = 300.0
    preview_every: float = 600.0
    progress: bool = True


@dataclass(frozen=True)
class Learner:
    """An optimizer and what it changes.

    Attributes:
        optimizer: of PyTorch's kind.
        names: of its parameters.
        learning_rate: between the warm-up and the fall.
        moments, counts: what it keeps for each parameter, as ``load_optimizer_tensors`` takes it.
    """

    optimizer: torch.optim.Optimizer
    names: list[str]
    learning_rate: float
    moments: tuple[str, ...] = ("exp_avg", "exp_avg_sq")
    counts: tuple[str, ...] = ("step",)


def optimizers(network: nn.Module, config: OptimizerConfig, shares: Mapping[str, float] | None = None) -> list[Learner]:
    """Adam for all parameters; with a ``matrix_learning_rate`` Muon for the matrices inside the network.

    Args:
        network: what learns.
        config: how fast.
        shares: of the rates, for parameters whose names begin so; the others have all of them.
    """
    parameters = dict(network.named_parameters())
    learners = []
    rest = list(parameters)
    for beginning, share in {**(shares or {}), "": 1.0}.items():
        names = [name for name in rest if name.startswith(beginning)]
        rest = [name for name in rest if not name.startswith(beginning)]
        learners += learners_of({name: parameters[name] for name in names}, config, share)
    return learners


def learners_of(parameters: Mapping[str, nn.Parameter], config: OptimizerConfig, share: float) -> list[Learner]:
    """Adam and Muon for some parameters, at a share of the rates; at 0 nothing, so that they stay as they are."""
    if not share or not parameters:
        return []
    rate, matrix_rate = share * config.learning_rate, share * config.matrix_learning_rate
    inner = [name for name, each in parameters.items() if matrix_rate and is_inner_matrix(name, each)]
    outer = [name for name in parameters if name not in set(inner)]
    betas = (0.9, config.beta2)
    adam = torch.optim.Adam([parameters[name] for name in outer], lr=rate, betas=betas, fused=True)
    learners = [Learner(adam, outer, rate)]
    if inner:
        muon = Muon([parameters[name] for name in inner], lr=matrix_rate)
        learners.append(Learner(muon, inner, matrix_rate, ("momentum",), ()))
    return learners


def is_inner_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Whether Muon is for it: it maps features to features, not to or from tokens, times, latents or classes."""
    return parameter.ndim >= 2 and not any(part in name for part in ("embedding.", "conv_in.", "conv_out.", "heads."))


class Trainer:
    """Trains one stage.

    Args:
        stage: what is to be learned.
        run: where and how the run keeps its files.

    Raises:
        CheckpointError: the state to resume from is damaged, or of a run with another configuration or other inputs.
    """

    def __init__(self, stage: Stage, run: Run) -> None:
        self.stage, self.run_options = stage, run
        self.config = stage.optimizer
        network: Any = stage.network.to(stage.device)
        self.network: nn.Module = network.to(memory_format=torch.channels_last)  # in which convolutions are fastest
        self.optimizers = optimizers(self.network, self.config, stage.shares)
        self.average = AveragedModel(self.network, multi_avg_fn=ema_update(self.config.ema_decay), use_buffers=True)
        self.step = 0
        self.interrupted = False
        if run.resume and self.state_file.exists():
            self.load_state()

    @property
    def state_file(self) -> Path:
        return self.run_options.folder / STATE_NAME.format(stage=self.stage.name)

    @property
    def metadata(self) -> dict[str, str]:
        """The facts that are kept with the weights."""
        return {"config": self.stage.config.to_json(), "inputs": self.stage.inputs, "step": str(self.step)}

    def save(self) -> None:
        """Write the state to resume from, and what others are to use."""
        network = {f"network.{name}": tensor for name, tensor in self.network.state_dict().items()}
        average = {f"average.{name}": tensor for name, tensor in self.average.state_dict().items()}
        moments: dict[str, Tensor] = {}
        for each in self.optimizers:
            moments |= optimizer_tensors(each.optimizer, each.names)
        checkpoint.write(self.state_file, STATE, network | average | moments, self.metadata)
        self.stage.publish(self.average.module, self.metadata)

    def load_state(self) -> None:
        """Continue from the run's own state.

        Raises:
            CheckpointError: the state is damaged, or of a run with another configuration or other inputs.
        """
        tensors, metadata = checkpoint.read(self.state_file, STATE)
        try:
            self.step = int(metadata["step"])
            self.refuse_others(TrainConfig.from_json(metadata["config"]), metadata["inputs"])
            for prefix, module in (("network.", self.network), ("average.", self.average)):
                own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
                module.load_state_dict(own)
            for each in self.optimizers:
                load_optimizer_tensors(each.optimizer, each.names, tensors, each.moments, each.counts)
        except (KeyError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"{self.state_file} is not the state of a run: {one_line(error)}") from error

    def refuse_others(self, theirs: TrainConfig, inputs: str) -> None:
        """Compare what the state was trained with to what is asked for now.

        Raises:
            CheckpointError: they differ in more than the number of steps, or the rate was already falling to that.
        """
        training, model = self.stage.sections(theirs)
        if self.step <= min(training.optimizer.steps, self.config.steps) - self.config.decay_steps:
            training = replace(training, optimizer=replace(training.optimizer, steps=self.config.steps))
        wanted = self.stage.sections(self.stage.config)
        pairs = zip((training, model), wanted, strict=True)
        differences = [configuration.difference(there, here) for there, here in pairs]
        for name in ("mixed_precision", "seed"):
            there, here = getattr(theirs, name), getattr(self.stage.config, name)
            differences += [f"{name} {there} there and {here} here"] if there != here else []
        if inputs != self.stage.inputs:
            differences.append("other images, or another VAE or text encoder")
        if any(differences):
            raise CheckpointError(
                f"{self.state_file} belongs to another run ({', '.join(filter(None, differences))}); "
                f"resume with the same options, or begin anew with another --out"
            )

    def train_step(self) -> tuple[float, dict[str, float]]:
        """One step; returns the loss and what else is worth a curve."""
        share = self.config.share_at(self.step)
        for each in self.optimizers:
            for group in each.optimizer.param_groups:
                group["lr"] = share * each.learning_rate
        self.network.train()
        loss, values = self.stage.loss(self.step)
        self.network.zero_grad()
        loss.backward()
        norm = float(nn.utils.clip_grad_norm_(self.network.parameters(), self.config.max_grad_norm))
        if not math.isfinite(norm):  # nor would the weights be, from here on
            raise TrainingError(f"the gradient is {norm} at step {self.step}, loss {loss.item()}; the run is as saved")
        for each in self.optimizers:
            each.optimizer.step()
        self.average.update_parameters(self.network)
        self.step += 1
        return loss.item(), {**values, "gradient_norm": norm, "learning_rate": share * self.config.learning_rate}

    def run(self) -> bool:
        """Train to the end: True; or until asked to stop, or the time is up: False. The last whole step is saved."""
        run, total = self.run_options, self.config.steps
        last_save = last_preview = time.monotonic()
        folder = run.folder / self.stage.name
        with StopRequest() as stop, Reporter(folder, self.step, total, True, run.progress) as reporter:
            while self.step < total:
                loss, values = self.train_step()
                reporter.report(loss, **values)
                now = time.monotonic()
                if stop.requested or now > run.deadline:
                    break
                if now - last_save > run.save_every:
                    self.save()
                    last_save = now
                if now - last_preview > run.preview_every or self.step == total:
                    reporter.preview(self.stage.preview(self.average.module.eval()))
                    last_preview = time.monotonic()
            self.save()
            if self.step < total:
                self.interrupted = stop.requested
                why = "interrupted" if stop.requested else "time is up"
                reporter.say(f"{self.stage.name}: {why} at step {self.step} of {total}; continue with --resume")
        return self.step == total
