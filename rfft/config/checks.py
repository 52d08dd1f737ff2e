"""Checks of a config: the limits beside each setting, and combinations that cannot work."""

from __future__ import annotations

import math
import re
from dataclasses import Field, fields, is_dataclass
from typing import Any

from rfft.config.schema import Config, EvaluateConfig, ModelConfig, ObjectiveConfig, RewardConfig
from rfft.config.sizes import check_sizes
from rfft.errors import UserError, require

LARGEST = 2**63 - 1
FOLDER_NAME, PROJECT_NAME = r"\w[\w.-]*", r"\w[\w .-]{0,127}"


def check_run(config: Any) -> None:
    """Raise a UserError for what the configs of both trainings have in common: run, tracker and optimizer."""
    name, project, betas = config.run.name, config.tracker.project, config.optimizer.betas
    require(
        re.fullmatch(FOLDER_NAME, name),
        f"run.name {name!r} must be a plain folder name: letters, digits, '-', '_' and '.'",
    )
    require(
        re.fullmatch(PROJECT_NAME, project),
        f"tracker.project {project!r} must be a plain name of at most 128 letters, digits, spaces, '-', '_' "
        "and '.'",
    )
    require(
        len(betas) == 2 and all(0 <= beta < 1 for beta in betas),
        f"optimizer.betas={betas} must be two numbers in [0, 1), as in [0.9, 0.999]",
    )


def check_config(config: Config) -> None:
    """Raise a UserError that names the fix for a combination of settings that cannot work."""
    model, rollout, data, objective = config.model, config.rollout, config.data, config.objective
    _check_trained_parts(model)
    _check_fid(config.evaluate)
    _check_guardrails(config.evaluate)
    _check_monitor(config.evaluate, config.reward)
    require(
        model.dtype == "float32" or config.trainer.mixed_precision != "no",
        f"model.dtype={model.dtype} needs autocast: set trainer.mixed_precision=bf16, or model.dtype=float32",
    )
    require(
        model.quantize == "none" or rollout.precision == "autocast",
        "model.quantize saves nothing beside the rollout's own copy: set rollout.precision=autocast",
    )
    require(
        rollout.precision != "autocast" or (rollout.cache == 1 and rollout.compile != "always"),
        "rollout.cache and rollout.compile are of the rollout's own copy: set rollout.precision=bf16",
    )
    require(
        rollout.last <= rollout.steps,
        f"rollout.last={rollout.last} is more than rollout.steps={rollout.steps}: lower rollout.last",
    )
    require(
        rollout.grad_steps <= rollout.last,
        f"rollout.grad_steps={rollout.grad_steps} is more than rollout.last={rollout.last}: lower grad_steps",
    )
    require(
        objective.precision != "fp16" or config.trainer.mixed_precision == "fp16",
        "objective.precision=fp16 needs a loss scale: set trainer.mixed_precision=fp16, or "
        "objective.precision=bf16",
    )
    _check_reward(config.reward)
    _check_beta(objective)
    check_sizes(data)
    require(
        data.canny_low < data.canny_high,
        f"data.canny_low={data.canny_low} must be below data.canny_high={data.canny_high}",
    )
    require(
        config.reward.rfnet is None or config.evaluate.judge != config.reward.rfnet,
        "evaluate.judge is the network of reward.rfnet itself: name another one, or evaluate.judge=null",
    )


def _check_beta(objective: ObjectiveConfig) -> None:
    beta, weights = objective.beta, objective.step_weights
    require(
        beta == "auto" or not isinstance(beta, str),
        f"objective.beta={beta} must be a number, 0 at least, or auto",
    )
    require(
        beta != "auto" or objective.regularizer != "none",
        "objective.beta=auto has nothing to hold: set objective.regularizer=cc, or objective.beta=0",
    )
    require(
        weights and all(weight >= 0 for weight in weights),
        f"objective.step_weights={weights} must be numbers, 0 at least: [1] weighs all steps alike",
    )


def _check_reward(reward: RewardConfig) -> None:
    require(
        reward.terms,
        "reward.terms is empty: name what to train for, for example reward.terms=[{use: rfnet}]",
    )
    require(
        reward.rfnet is not None or all(term.use != "rfnet" for term in reward.terms),
        "reward.terms has rfnet, and reward.rfnet is null: name a network with reward.rfnet, or other terms",
    )
    for options in (term.options for term in reward.terms if term.use == "rfnet"):
        names = options.get("ensemble", [])
        known = set(options) <= {"ensemble"} and isinstance(names, list)
        require(
            known and all(isinstance(name, str) for name in names),
            "reward.terms: rfnet takes options: {ensemble: [FOLDER, ...]}, further RFNets, and no others",
        )


def _check_fid(evaluate: EvaluateConfig) -> None:
    require(
        evaluate.fid == "none" or evaluate.reference,
        "evaluate.fid compares with held-out pictures: name them with evaluate.reference, or set it to none",
    )
    require(
        evaluate.fid != "clip" or evaluate.clip,
        "evaluate.fid=clip needs a CLIP model: name it with evaluate.clip, or set evaluate.fid=efficientnet",
    )


def _check_guardrails(evaluate: EvaluateConfig) -> None:
    if not evaluate.stop_at_guardrail:
        return
    require(
        evaluate.enabled and evaluate.every,
        "evaluate.stop_at_guardrail looks at the model on the way: set evaluate.every, evaluate.enabled=true",
    )
    require(
        evaluate.validation.seeds > 1 or evaluate.min_diversity == 0,
        "evaluate.stop_at_guardrail needs diversity, which takes two pictures of a prompt: set "
        "evaluate.validation.seeds=2, or evaluate.min_diversity=0",
    )


def _check_monitor(evaluate: EvaluateConfig, reward: RewardConfig) -> None:
    ensembles = [term.options.get("ensemble", []) for term in reward.terms if term.use == "rfnet"]
    require(
        evaluate.monitor is None or evaluate.monitor not in [reward.rfnet, *sum(ensembles, [])],
        f"evaluate.monitor={evaluate.monitor} is a network that the run is trained for: name another RFNet",
    )
    require(
        evaluate.monitor is None or evaluate.monitor != evaluate.judge,
        "evaluate.monitor is the judge, which stays out of every choice: name another RFNet",
    )


def _check_trained_parts(model: ModelConfig) -> None:
    parts = model.train
    require(parts, "model.train is empty: name what to train, for example model.train=[denoiser_lora]")
    require(len(set(parts)) == len(parts), f"model.train names a part twice: {', '.join(parts)}")
    require(
        not {"controlnet", "controlnet_lora"} <= set(parts),
        "model.train has both controlnet and controlnet_lora: choose all of it or its LoRA",
    )
    require(
        model.lora.target_modules or parts == ["controlnet"],
        "model.lora.target_modules is empty: name the modules that get an adapter, for example [to_q, to_v]",
    )


def check_limits(settings: Any, prefix: str = "") -> None:
    """Raise a UserError for a value beyond the limits that stand beside its field in the schema."""
    for entry in fields(settings):
        value = getattr(settings, entry.name)
        if is_dataclass(value):
            check_limits(value, f"{prefix}{entry.name}.")
        elif entry.metadata.get("nested"):
            continue
        elif isinstance(value, list) and any(isinstance(item, (list, dict)) for item in value):
            # OmegaConf lets them pass, whatever the schema has in the list.
            raise UserError(f"{prefix}{entry.name} is {value}; it must be a list of single values")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            problem = _limit_problem(value, entry)
            if problem:
                shown = "too large" if isinstance(value, int) and abs(value) > LARGEST else value
                raise UserError(f"{prefix}{entry.name} is {shown}; it must be {problem}")


def _limit_problem(value: float, entry: Field[Any]) -> str:
    limits = entry.metadata
    if isinstance(value, int) and abs(value) > LARGEST:
        return f"at most {LARGEST}"
    if not math.isfinite(value):
        return "a finite number"
    if "above" in limits and value <= limits["above"]:
        return f"above {limits['above']}"
    if "least" in limits and value < limits["least"]:
        return f"at least {limits['least']}"
    if "most" in limits and value > limits["most"]:
        return f"at most {limits['most']}"
    return ""
