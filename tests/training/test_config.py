"""Settings: what is refused and how, what is resolved, and that they survive JSON."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flipped_kd.experiments.arguments import DataArguments, StudentArguments
from flipped_kd.training.config import PLAIN, FlippedDistillationConfig


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)


@pytest.fixture
def make(tmp_path: Path) -> Any:
    return lambda **settings: FlippedDistillationConfig(output_dir=str(tmp_path), report_to=[], **settings)


INDEPENDENT = {"representation": "independent"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"representation": "alone"}, r"representation='alone': choose one of \['independent', 'joint'"),
        ({"contrast": "triplet"}, r"contrast='triplet': choose one of \['pairwise', 'infonce'\]"),
        ({"dist_loss": "l1"}, r"dist_loss='l1': choose one of \['mse', 'kl', 'margin_mse'"),
        ({"positive_margin": "some"}, "positive_margin='some': choose one of"),
        ({"negative_margin": "some"}, "negative_margin='some': choose one of"),
        ({"score": "mean"}, r"score='mean': choose one of \['answer', 'similarity', 'both'\]"),
        ({"sup_weight": -1}, "sup_weight=-1: a loss weight is a finite number >= 0"),
        ({"dist_weight": math.inf}, "dist_weight=inf: a loss weight"),
        ({"mcl_weight": math.nan}, "mcl_weight=nan: a loss weight"),
        ({"sup_weight": 0, "dist_weight": 0, "mcl_weight": 0}, "all 0: nothing would be trained; raise one"),
        ({"answer_teacher_weight": 1.5}, r"answer_teacher_weight=1\.5: .*give the teacher's share, in \[0, 1\]"),
        ({"answer_teacher_weight": math.nan}, "answer_teacher_weight=nan: "),
        ({"answer_teacher_weight": 0.5, "sup_weight": 0}, r"answer_teacher_weight=0\.5: with sup_weight=0 no answer"),
        ({"margin": -0.1}, r"margin=-0.1: .*\[0, pi\] radians"),
        ({"margin": 3.2}, "margin=3.2: "),
        ({"margin": math.nan}, "margin=nan: "),
        ({"temperature": 0}, r"temperature=0: it must lie in \(0, 100\]"),
        ({"temperature": math.inf}, "temperature=inf: "),
        ({"positive_threshold": 1.1}, r"positive_threshold=1.1: .*probability in \[0, 1\]"),
        ({"negative_threshold": -0.1}, "negative_threshold=-0.1: "),
        ({"representation": "joint", "contrast": "infonce"}, "contrast='infonce': .*'joint'.*use contrast='pairwise'"),
        ({"margin": [0.06]}, r"margin=\[0.06\]: give one number"),
        ({"temperature": "0.1"}, "temperature='0.1': give one number"),
        ({"positive_threshold": None}, "positive_threshold=None: give one number"),
        ({"answer_teacher_weight": [0.5]}, "answer_teacher_weight=.*give one number"),
        ({"answer_vocabulary_weight": 1.1}, r"answer_vocabulary_weight=1.1: .*in \[0, 1\]"),
        ({"answer_vocabulary_weight": None}, "answer_vocabulary_weight=None: give one number"),
        ({"max_grad_value": True}, "max_grad_value=True: give one number"),
        ({"max_length": True}, "max_length=True: give an integer"),
        ({"max_length": 15}, "max_length=15: give an integer of at least 16"),
        ({"max_length": 64.5}, "max_length=64.5: give an integer"),
        ({"teacher_batch_size": 0}, "teacher_batch_size=0: give an integer of at least 1"),
        ({"remove_unused_columns": True}, "remove_unused_columns=True would drop text_a.*leave it False"),
        (
            {"activation_checkpointing_kwargs": {"use_reentrant": True}},
            "cuts the gradient.*use .'use_reentrant': False",
        ),
        ({"activation_checkpointing_kwargs": '{"use_reentrant": true}'}, "cuts the gradient"),
        ({"gradient_checkpointing_kwargs": {"use_reentrant": True}}, "cuts the gradient"),
        ({"max_grad_value": -1.0}, "max_grad_value=-1.0: .*or give 0"),
        ({"max_grad_value": math.nan}, "max_grad_value=nan: "),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor=0.1: .*leave it 0"),
        ({"bf16_full_eval": True, "use_cpu": True}, "bf16_full_eval=True: .*give precision instead"),
        ({"eval_do_concat_batches": False}, "eval_do_concat_batches=False: .*leave it True"),
        ({"train_sampling_strategy": "group_by_lenght"}, r"'group_by_lenght': choose one of \['group_by_length'"),
        ({"train_sampling_strategy": "batch_rebalance"}, "'batch_rebalance': .*unequally"),
        ({"precision": "int8"}, r"precision='int8': choose one of \['auto', 'bf16', 'fp16', 'fp32'\]"),
        ({"precision": "fp32", "bf16": True}, r"precision='fp32': it contradicts bf16=True.*copy.*bf16=False too"),
        ({"include_num_input_tokens_seen": "non_padding"}, "include_num_input_tokens_seen='non_padding': .*leave"),
        ({"auto_find_batch_size": True, "mini_batch_size": 2}, "auto_find_batch_size=True: .*smaller mini_batch_size"),
        ({"include_num_input_tokens_seen": True, "mini_batch_size": 2}, "include_num_input_tokens_seen='all': "),
        ({"include_for_metrics": ["inputs"]}, r"include_for_metrics=\['inputs'\]: .*leave 'inputs' out"),
        ({"deepspeed": {"optimizer": {"type": "AdamW"}}}, "before the student is loaded.*give learning_rate"),
        ({"bf16": True, "fp16": True}, "precision='bf16': it contradicts fp16=True"),
    ],
)
def test_impossible_settings_are_refused_with_value_and_remedy(
    make: Any, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make(**settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"margin": 0, "positive_threshold": 0, "negative_threshold": 1},
        {"margin": math.pi, "positive_threshold": 1, "negative_threshold": 0, "temperature": 100},
        {"contrast": "infonce", "dist_loss": "kl", **INDEPENDENT},
        {"representation": "joint", "contrast": "pairwise", "dist_loss": "mse"},
        {"sup_weight": 1, "dist_weight": 0, "mcl_weight": 0},
        {"max_length": 16, "teacher_batch_size": 1, "max_grad_value": 0, "answer_vocabulary_weight": 1},
        {"include_num_input_tokens_seen": "all"},
    ],
)
def test_the_ends_of_every_range_are_allowed(make: Any, settings: dict[str, Any]) -> None:
    config = make(**settings)
    assert {name: getattr(config, name) for name in settings} == settings


def test_the_paper_s_defaults_and_the_guards_are_on(make: Any) -> None:
    config = make()
    assert (config.learning_rate, config.warmup_steps, config.weight_decay) == (None, 0.05, 0.1)
    assert (config.margin, config.positive_threshold, config.negative_threshold) == (0.06, 0.5, 0.5)
    assert (config.positive_margin, config.negative_margin) == ("teacher", "teacher")
    assert (config.dist_loss, config.contrast) == ("pearson", "pairwise")
    assert (config.temperature, config.contrast_filter) == (0.05, "assumed")
    assert (config.sup_weight, config.dist_weight, config.mcl_weight) == (1, 1, 1)
    assert (config.answer_teacher_weight, config.answer_vocabulary_weight) == (0, 0)
    assert config.remove_unused_columns is False and config.ddp_find_unused_parameters is False
    assert config.label_names == ["labels"]
    assert config.activation_checkpointing_kwargs == {"use_reentrant": False}


def test_the_teacher_takes_part_if_a_weight_asks_for_it(make: Any) -> None:
    assert not make(dist_weight=0, mcl_weight=0).distils
    assert make(dist_weight=0).distils and make(mcl_weight=0).distils and make(sup_weight=0).distils
    assert make(dist_weight=0, mcl_weight=0, answer_teacher_weight=0.1).distils and not make(**PLAIN).distils


@pytest.mark.parametrize("given", [{"every_n_layers": 2}, '{"every_n_layers": 2}'])
def test_other_checkpointing_options_keep_non_reentrant(make: Any, given: Any) -> None:
    for name in ("activation_checkpointing_kwargs", "gradient_checkpointing_kwargs"):  # the second is the old one
        config = make(**{name: given})
        assert config.activation_checkpointing_kwargs == {"use_reentrant": False, "every_n_layers": 2}
        # The old name mirrors the new one in a copy: there it must not hold on to the value before.
        other = dataclasses.replace(config, activation_checkpointing_kwargs={"every_n_layers": 3})
        assert other.activation_checkpointing_kwargs == {"use_reentrant": False, "every_n_layers": 3}


@pytest.mark.parametrize(
    ("given", "expected"), [("last:2", "last:2"), ([3, 4], "3,4"), ((0,), "0"), (5, "5"), ([-2, -1], "-2,-1")]
)
def test_encoder_layers_may_be_numbers(make: Any, given: Any, expected: str) -> None:
    assert make(encoder_layers=given).encoder_layers == expected


def test_encoder_modules_may_be_one_string_or_any_sequence(make: Any) -> None:
    assert make(encoder_modules="q_proj, mlp.down_proj").encoder_modules == ["q_proj", "mlp.down_proj"]
    assert make(encoder_modules=np.array(["q_proj"])).encoder_modules == ["q_proj"]
    assert make(encoder_modules=("all",)).encoder_modules is None


def test_the_home_folder_may_be_a_tilde(make: Any) -> None:
    """As in output_dir: a folder that is named so would be made where one stands."""
    assert make(teacher_cache_dir="~/scores").teacher_cache_dir == str(Path.home() / "scores")


def test_numpy_s_numbers_and_paths_become_python_s(make: Any, tmp_path: Path) -> None:
    """So that the settings can be written as JSON, as checkpoints and reports do."""
    given = {"max_length": np.int64(64), "mini_batch_size": np.int32(2), "margin": np.float32(0.5), "seed": np.int8(3)}
    given |= {"per_device_train_batch_size": np.int64(8), "encoder_layers": np.int64(1)}
    config = make(**given, teacher_cache_dir=tmp_path)
    written = json.loads(config.to_json_string())
    assert written["teacher_cache_dir"] == str(tmp_path) and written["encoder_layers"] == "1"
    for name in ("max_length", "mini_batch_size", "margin", "seed", "per_device_train_batch_size"):
        assert written[name] == given[name] and type(getattr(config, name)) in (int, float)


@pytest.mark.parametrize(
    ("metric", "greater"),
    [
        ("loss", False),
        ("loss_dist", False),
        ("eval_loss_sup", False),
        ("eval_hard_loss_mcl", False),  # of the part "hard" of several evaluation sets
        ("dropped_negative", False),
        ("f1", True),
        ("similarity_roc_auc", True),
        ("eval_loss_roc_auc", True),  # of a part that is named "loss"
        (None, None),
    ],
)
def test_losses_are_better_the_lower_they_are(make: Any, metric: str | None, greater: bool | None) -> None:
    assert make(metric_for_best_model=metric).greater_is_better is greater
    assert make(metric_for_best_model=metric, greater_is_better=True).greater_is_better is True


@pytest.mark.parametrize("schedule", ["reduce_lr_on_plateau", "greedy"])
def test_schedules_that_watch_a_metric_know_which_way_is_better(make: Any, schedule: str) -> None:
    every = {"lr_scheduler_type": schedule, "eval_strategy": "epoch"}
    for metric, mode in (("f1", "max"), ("loss_dist", "min"), (None, "min")):
        assert make(metric_for_best_model=metric, **every).lr_scheduler_kwargs == {"mode": mode}
    own = make(metric_for_best_model="f1", lr_scheduler_kwargs='{"mode": "min"}', **every)
    assert own.lr_scheduler_kwargs == {"mode": "min"}


@pytest.mark.skipif(torch.accelerator.is_available(), reason="what a machine without accelerator resolves")
class TestPrecisionOnCpu:
    """Precision where there is only a CPU."""

    def test_auto_is_float32(self, make: Any) -> None:
        config = make()
        assert (config.precision, config.bf16, config.fp16, config.mixed_precision) == ("fp32", False, False, "no")

    @pytest.mark.parametrize("settings", [{"precision": "bf16"}, {"bf16": True}])
    def test_bf16_asks_for_the_cpu(self, make: Any, settings: dict[str, Any]) -> None:
        config = make(**settings)
        assert (config.precision, config.bf16, config.use_cpu, config.mixed_precision) == ("bf16", True, True, "bf16")

    @pytest.mark.parametrize("settings", [{"precision": "fp16"}, {"fp16": True}])
    def test_fp16_is_refused(self, make: Any, settings: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match="precision='fp16': a CPU has no float16 training; use 'bf16' or 'fp32'"):
            make(**settings)

    def test_the_launcher_decides_unless_the_user_does(self, make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
        assert (make().precision, make().mixed_precision) == ("bf16", "bf16")
        config = make(precision="fp32")
        assert (config.precision, config.bf16, config.mixed_precision) == ("fp32", False, "no")
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
        assert make(precision="bf16").mixed_precision == "bf16"


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"precision": "bf16", "margin": 0.3, "encoder_layers": [0, 1], "encoder_modules": ["q_proj"]},
        {"contrast": "infonce", "dist_loss": "kl", "max_grad_value": 0.5, "eval_strategy": "epoch", **INDEPENDENT},
    ],
)
def test_settings_survive_json(make: Any, settings: dict[str, Any]) -> None:
    config = make(**settings)
    written = json.loads(config.to_json_string())
    again = FlippedDistillationConfig(**written)
    assert json.loads(again.to_json_string()) == written
    for name in ("margin", "contrast", "precision", "encoder_layers", "encoder_modules", "max_grad_value"):
        assert name in written
    assert json.loads(json.dumps(config.to_dict())) == config.to_dict()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lora_r": 0}, "lora_r=0: give an integer of at least 1"),
        ({"lora_r": 2.5}, "lora_r=2.5: give an integer"),
        ({"lora_alpha": 0.0}, "lora_alpha=0.0: give a positive number"),
        ({"lora_alpha": math.inf}, "lora_alpha=inf: "),
        ({"lora_dropout": 1.0}, r"lora_dropout=1.0: .*\[0, 1\)"),
        ({"lora_dropout": -0.1}, "lora_dropout=-0.1: "),
        ({"student_dtype": "float16"}, r"student_dtype='float16': choose one of \['auto', 'float32', 'bfloat16'\]"),
    ],
)
def test_impossible_student_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StudentArguments(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seeds": 0}, "seeds=0: give an integer of at least 1; at least one run"),
        ({"max_train_pairs": 0}, "max_train_pairs=0: give an integer of at least 1; leave it out"),
        ({"label_threshold": math.nan}, "label_threshold=nan: .*finite"),
    ],
)
def test_impossible_data_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DataArguments(**settings)


def test_repository_code_is_off_by_default() -> None:
    assert StudentArguments().trust_remote_code is False


def test_memory_is_pinned_only_for_an_accelerator(tmp_path: Path) -> None:
    config = FlippedDistillationConfig(output_dir=str(tmp_path))
    assert config.dataloader_pin_memory == torch.accelerator.is_available()
    assert not FlippedDistillationConfig(output_dir=str(tmp_path), dataloader_pin_memory=False).dataloader_pin_memory
