"""The part of the trainer that saves and pushes: with our contracts and card, and without transformers' pickle."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.trainer_utils import HubStrategy
from transformers.utils.hub import PushInProgress, hf_api

from ..evaluation.match_score import SCORE_FILE, MatchScore
from ..inference.loading import ADAPTER_CONFIG
from ..prompts.pair_prompt import PROMPT_FILE, PairPrompt, read_prompt_file
from ..publishing.card import write_card
from ..publishing.errors import failure_of
from ..publishing.files import CARD_FILE, uploadable
from ..publishing.publish import PublishReport, publish
from ..publishing.push import open_repository, published_config, refuse_local_gguf
from ..students.base_weights import BASE_FILE, BaseWeights
from ..students.gguf import GGUF_FILE
from ..students.lora import without_advice
from ..students.lora_encoder import ENCODER_FILE, LoraEncoder
from ..utils.atomic import replacing
from ..utils.json_files import read_json_object
from .checkpoints import CheckpointingTrainer

logger = logging.getLogger(__name__)
# Of LoRA: what the same weights compute depends on them.
OF_THE_FUNCTION = (
    *("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora"),
    *("bias", "lora_bias", "modules_to_save"),
)
RESUME_FILES = ("optimizer", "scheduler", "scaler", "rng_state", "trainer_state")


class PublishingTrainer(CheckpointingTrainer):
    """Saves the adapter with prompt, encoder, score and card, and pushes just these."""

    prompt: PairPrompt
    encoder: LoraEncoder
    match_score: MatchScore | None
    # None where the base is quantised or sharded.
    base_weights: BaseWeights | None = None
    # The step whose weights the match score was fitted on.
    scored_step: int | None
    processing_class: PreTrainedTokenizerBase
    # By the name of the checkpoint.
    _uploads: Mapping[str, Future[Any]] = {}

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Write the adapter, the tokenizer, the contracts and the card; no training_args.bin, a pickle with the Hub
        token."""
        if not self.args.should_save:
            return
        folder = Path(str(output_dir or self.args.output_dir))
        student = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        with _card_kept(folder), without_advice():
            student.save_pretrained(str(folder), state_dict=state_dict)
        self.processing_class.save_pretrained(folder)
        self.prompt.save_pretrained(folder)
        self.encoder.save_pretrained(folder)
        records = {GGUF_FILE: getattr(student.get_base_model(), "gguf_base", None), BASE_FILE: self.base_weights}
        for name, record in records.items():
            if record is not None:
                record.save_pretrained(folder)
            else:  # one that is there is of another base
                (folder / name).unlink(missing_ok=True)
        if self.match_score is not None and self.scored_step == self.state.global_step:
            self.match_score.save_pretrained(folder)
        else:  # one that is there was fitted on other weights
            (folder / SCORE_FILE).unlink(missing_ok=True)
        self._write_card(folder)

    def _write_card(self, folder: Path) -> None:
        try:
            write_card(folder, repo_id=self.hub_model_id, plots=False)
        except Exception:  # a checkpoint is worth more than its card
            logger.warning("no card was written into %s", folder, exc_info=True)

    def check_contracts(self, checkpoint: Path) -> None:
        """Refuse a checkpoint of another encoder, prompt or base, such as the defaults of an earlier release.

        Raises:
            ValueError: they differ; the message names the settings that decide them.
        """
        base = BaseWeights.from_pretrained(checkpoint)
        difference = None if base is None else base.difference(self.base_weights)
        if difference is not None:
            raise ValueError(
                f"{checkpoint} was trained on other weights than this student's: {difference}. Give the student it "
                "was trained on, or start anew in another output_dir."
            )
        encoder = LoraEncoder.from_pretrained(checkpoint) if (checkpoint / ENCODER_FILE).is_file() else self.encoder
        if encoder.to_dict() != self.encoder.to_dict():
            layers = ",".join(str(layer) for layer in sorted({module.layer for module in encoder.modules}))
            raise ValueError(
                f"{checkpoint} was trained with another encoder: resume with its encoder_layers ({layers}), "
                f"encoder_modules ({sorted({module.ending for module in encoder.modules})}), encoder_pooling "
                f"({encoder.pooling}) and encoder_rank ({sorted({module.rank for module in encoder.modules})}), or "
                "start anew in another output_dir."
            )
        self._check_adapter(checkpoint)
        if (checkpoint / PROMPT_FILE).is_file():
            saved, own = read_prompt_file(checkpoint / PROMPT_FILE), self.prompt.to_dict()
            different = sorted(name for name in own if saved.get(name) != own[name])
            if different:
                raise ValueError(
                    f"{checkpoint} was trained with another prompt ({different} differ): give the trainer "
                    "prompt=PairPrompt.from_pretrained(checkpoint, tokenizer), or start anew in another output_dir."
                )

    def _check_adapter(self, checkpoint: Path) -> None:
        """Refuse LoRA settings that would make another function of the same weights: PEFT takes the student's."""
        if not (checkpoint / ADAPTER_CONFIG).is_file():
            return
        saved = read_json_object(checkpoint / ADAPTER_CONFIG)
        config: Any = self.model.peft_config["default"]  # type: ignore[union-attr, index]
        own = {name: getattr(config, name, None) for name in OF_THE_FUNCTION}
        own = json.loads(json.dumps(own, default=sorted))  # as the file has them
        different = {
            name: (saved[name], own[name])
            for name in OF_THE_FUNCTION
            if name in saved and (saved[name] or None) != (own[name] or None)
        }
        if different:
            shown = ", ".join(f"{name}={was!r}, now {now!r}" for name, (was, now) in different.items())
            raise ValueError(
                f"{checkpoint} was trained with other LoRA settings ({shown}): resume with its own, or start anew in "
                "another output_dir."
            )

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write README.md from the contracts in the output folder; transformers' arguments are not used."""
        if self.is_world_process_zero():
            write_card(str(self.args.output_dir), repo_id=self.hub_model_id)

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """As in Trainer; with private=True (or hub_private_repo) a repository that is public already is refused."""
        if not self.is_world_process_zero():
            return
        refuse_local_gguf(getattr(self.model.get_base_model(), "gguf_base", None))  # type: ignore[union-attr, operator]
        state: Any = self  # transformers declares hub_model_id as None
        state.hub_model_id = open_repository(
            self._repo_name(),
            private=self.args.hub_private_repo if private is None else private,
            token=token or self.args.hub_token,
        )
        self.push_in_progress = None

    def push_to_hub(  # type: ignore[override]
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        *,
        merged: bool = False,
        private: bool | None = None,
        base_model: str | None = None,
        **kwargs: Any,
    ) -> PublishReport | Future[PublishReport] | None:
        """Save, write the card and push the adapter, and with `merged` the merged model too (see `publish`).

        Every process calls it; the main one pushes.

        Args:
            commit_message: of the commits.
            blocking: wait for the upload; otherwise a Future of the report is returned.
            token: by default `args.hub_token`, else the one of `hf auth login` or HF_TOKEN.
            revision: branch; by default `args.hub_revision`, else "main".
            merged: merge the adapter and push that too, to the repository's name with "-merged".
            private: by default `args.hub_private_repo`.
            base_model: base to merge into, where the student was not loaded by name.
            **kwargs: transformers' arguments for its own card; not used.

        Raises:
            ValueError, PublishError: as `publish`. What was saved stays, and the call can be repeated.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        self._finish_current_push()
        options: dict[str, Any] = {
            "merged": merged,
            "private": self.args.hub_private_repo if private is None else private,
            "token": token or self.args.hub_token,
            "revision": revision or self.args.hub_revision,
            "base_model": base_model,
            "commit_message": commit_message,
        }
        if blocking:
            return publish(str(self.args.output_dir), self._repo_name(), **options)
        return hf_api().run_as_future(publish, str(self.args.output_dir), self._repo_name(), **options)

    def _repo_name(self) -> str:
        return self.hub_model_id or self.args.hub_model_id or Path(str(self.args.output_dir)).absolute().name

    def push_checkpoint(self, checkpoint: Path) -> None:
        """Upload what the checkpoint holds for use, in the background, as `args.hub_strategy` says.

        Trainer's own way copies a fixed list of file names, which leaves out the contracts, and adds
        training_args.bin, a pickle that holds the Hub token in clear. A push that fails is logged; training goes on.
        """
        args = self.args
        if not self.is_world_process_zero() or args.hub_strategy == HubStrategy.END:
            return
        busy = self.push_in_progress is not None and not self.push_in_progress.is_done()
        if busy and not args.hub_always_push:
            return
        self.callback_handler.on_push_begin(args, self.state, self.control)
        out = Path(str(args.output_dir))
        for path in checkpoint.iterdir():
            if path.is_file() and not path.name.startswith(("_", CARD_FILE, *RESUME_FILES)):
                with replacing(out / path.name) as new:  # an earlier upload may be reading it
                    shutil.copy(path, new)
        if not (checkpoint / SCORE_FILE).is_file():
            (out / SCORE_FILE).unlink(missing_ok=True)
        self._write_card(out)  # one that was edited stays
        message = f"Training in progress, step {self.state.global_step}"
        try:
            jobs = [self._upload(out, None, message)]
            if args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
                place = "last-checkpoint" if args.hub_strategy == HubStrategy.CHECKPOINT else checkpoint.name
                jobs.append(self._upload(checkpoint, place, f"{message}, checkpoint"))
                self._uploads = {**self._uploads, checkpoint.name: jobs[-1]}
        except Exception as error:  # as for an upload that fails later
            logger.warning("%s", failure_of(error, message, args.hub_token))
            return
        state: Any = self  # transformers declares push_in_progress as None
        if busy:
            state.push_in_progress.jobs.extend(jobs)
        else:
            state.push_in_progress = PushInProgress(jobs)  # type: ignore[arg-type]
        if self.control.should_training_stop and args.save_total_limit == 1:
            self._finish_current_push()  # Trainer next removes all checkpoints but the best, unread ones too

    def _load_best_model(self) -> None:
        """As in Trainer; the match score of the last evaluation is not that of the weights which come back."""
        super()._load_best_model()
        self.scored_step = None

    def uploading(self) -> set[str]:
        """Names of checkpoints that an upload has yet to read: uploads wait for each other."""
        return {name for name, job in self._uploads.items() if not job.done()}

    def _upload(self, folder: Path, place: str | None, message: str) -> Future[Any]:
        """Start the upload of a folder: of what a reader needs and, into a sub-folder, of what resuming needs."""
        names = [str(path) for path in uploadable(folder, self.args.hub_token)]
        gone = [SCORE_FILE] if SCORE_FILE not in names else []
        if place is not None:
            names += [path.name for path in folder.iterdir() if path.name.startswith(RESUME_FILES)]
        to: dict[str, Any] = {
            "repo_id": str(self.hub_model_id),
            "commit_message": message,
            "token": self.args.hub_token,
            "revision": self.args.hub_revision,
        }
        if (config := published_config(folder)) is not None:  # uploads wait for each other: it goes first
            names.remove(ADAPTER_CONFIG)
            name = ADAPTER_CONFIG if place is None else f"{place}/{ADAPTER_CONFIG}"
            first = hf_api().upload_file(path_or_fileobj=config, path_in_repo=name, run_as_future=True, **to)
            first.add_done_callback(self._log_failure)
        job = hf_api().upload_folder(
            **to,
            folder_path=folder,
            path_in_repo=place,
            allow_patterns=names,
            delete_patterns=gone,
            run_as_future=True,
        )
        job.add_done_callback(self._log_failure)
        return job

    def _log_failure(self, job: Future[Any]) -> None:
        error = None if job.cancelled() else job.exception()
        if error is not None:
            logger.warning("%s", failure_of(error, "a push in mid-training", self.args.hub_token))


@contextmanager
def _card_kept(folder: Path) -> Iterator[None]:
    """Undo what PEFT does to README.md when it saves: it writes the base's local folder into the metadata."""
    card = folder / CARD_FILE
    before = card.read_bytes() if card.is_file() else None
    try:
        yield
    finally:
        if before is not None:
            card.write_bytes(before)
        else:
            card.unlink(missing_ok=True)
