"""Every private hook of transformers and accelerate that training builds on: where an upgrade may break it.

`tests/training/test_hf_compat.py` compares these rows with what is installed, and with what the code of this folder
uses: nothing private is overridden, called or set that has no row here.
"""

from __future__ import annotations

from dataclasses import dataclass

# What the rows were read from, as in constraints.txt.
VERSIONS = {"transformers": "5.23.0", "accelerate": "1.15.0"}


@dataclass(frozen=True)
class Hook:
    """A private method of `transformers.Trainer`.

    Attributes:
        name: of the method.
        signature: its arguments there, as they are written.
        digest: of its code there, without comments, docstring and layout.
        reason: why there is no public way.
    """

    name: str
    signature: str
    digest: str
    reason: str


OVERRIDDEN = (
    Hook(
        "_clip_grad_norm",
        "self, model",
        "a700ecd066a80392",
        "The event on_pre_optimizer_step comes when Trainer has clipped by norm already, and is not told the norm.",
    ),
    Hook(
        "_init_training_state",
        "self, max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial",
        "f628adaf5e8a81b8",
        "Says at which epoch and batch a resumed run goes on; of a stream Trainer takes all its passes for one. No "
        "event can say so.",
    ),
    Hook(
        "_load_best_model",
        "self",
        "38626b5555bbb40c",
        "The weights change at the end of training. Callbacks hear of the end afterwards, and may save a match score "
        "that was fitted on the weights before.",
    ),
    Hook(
        "_run_epoch",
        "self, model, epoch, train_dataloader, steps_in_epoch, num_update_steps_per_epoch, trial, "
        "ignore_keys_for_eval, start_time, resume_from_checkpoint, epochs_trained, steps_trained_in_current_epoch",
        "6d5bf8d2b83aaf9e",
        "Makes a step before it looks whether training should stop, and sets the epoch of samplers that several "
        "processes share too late. The event on_epoch_begin can do neither: it does not know the epoch.",
    ),
    Hook(
        "_save",
        "self, output_dir: str | None=None, state_dict: dict | None=None",
        "3d53bc0b16c6b34f",
        "save_model, which is public, gathers sharded weights and hands them on to this alone. It pickles the "
        "settings, with the Hub token in clear, and knows none of our files.",
    ),
    Hook(
        "_save_checkpoint",
        "self, model: nn.Module, trial: 'optuna.Trial | dict[str, Any] | None'",
        "7f9b9059ff52a69f",
        "A checkpoint is written elsewhere and then named, pushed and counted. The event on_save comes after all of "
        "this, and none comes before.",
    ),
)

CALLED = (
    Hook(
        "_determine_best_metric",
        "self, metrics: dict[str, float], trial: 'optuna.Trial | dict[str, Any] | None'",
        "dcb0e2f836b95293",
        "An evaluation that a killed run missed counts as the others do.",
    ),
    Hook(
        "_evaluate",
        "self, trial: 'optuna.Trial | dict[str, Any] | None', ignore_keys_for_eval: list[str] | None, "
        "skip_scheduler: bool=False",
        "94d4eceae3371219",
        "The same evaluation moves the schedule, where that goes by metrics; evaluate does not.",
    ),
    Hook("_finish_current_push", "self", "880f237ad5d75e3a", "A push of the end waits for those of checkpoints."),
    Hook(
        "_get_dataloader",
        "self, dataset: Dataset, description: str, batch_size: int, "
        "sampler_fn: Callable[[Dataset], torch.utils.data.Sampler] | None=None, is_training: bool=False, "
        "dataloader_key: str | None=None",
        "35ce99c80cc2c387",
        "Makes a loader with another sampler; get_train_dataloader takes none.",
    ),
    Hook(
        "_get_output_dir",
        "self, trial: 'optuna.Trial | dict[str, Any] | None'",
        "423a8cda2c7e3bc1",
        "Knows the folder of a trial in a search of hyperparameters.",
    ),
    Hook(
        "_get_train_sampler",
        "self, train_dataset: Dataset | None=None",
        "94e72baab4b3c11c",
        "Chooses the sampler that is replaced.",
    ),
    Hook(
        "_prepare_inputs",
        "self, inputs: dict[str, torch.Tensor | Any]",
        "56279f7974b9bbb1",
        "Moves a batch to its device; training_step and prediction_step do it by this.",
    ),
)

# Private attributes, by the module whose code has them, and what reads or sets them here.
ATTRIBUTES = {
    "transformers.trainer._train_batch_size": "Batch size of the loader with another sampler (resume.py).",
    "transformers.configuration_utils._attn_implementation": "Which students read shared rows (packing.py).",
    "accelerate.accelerator._models": "Whether a model is prepared; emptied after an early evaluation (processes.py).",
    "accelerate.accelerator._is_accelerate_prepared": "Unset after an early evaluation (processes.py).",
    "accelerate.accelerator._original_forward": "Whether a forward is wrapped in a closure (picklable.py).",
    "torch.nn.modules.module._forward_hooks": "Closures among them are replaced (picklable.py).",
}
