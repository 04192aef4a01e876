"""The flags that name a trained BERT: a run, or a checkpoint of any kind."""

import re
from typing import TYPE_CHECKING

from absl import flags

from modeling.config import GeluForm
from pipeline.storage import location

if TYPE_CHECKING:
    from modeling.checkpoints.pretrained import Pretrained

_STEP = re.compile(r"(step-)?\d{1,18}", re.ASCII)

_CHECKPOINT = flags.DEFINE_string(
    "checkpoint",
    None,
    "The BERT: a run, one of its checkpoints, a TensorFlow checkpoint of the original or the Model "
    "Garden (DIR/bert_model.ckpt or DIR), or a Hugging Face directory. With --run_dir: the step of "
    "one of the run's checkpoints.",
)
_RUN_DIR = flags.DEFINE_string(
    "run_dir",
    None,
    "A run: the --output_dir of `clozemill pretrain`. Without --checkpoint, its newest checkpoint.",
)
_BERT_CONFIG_FILE = flags.DEFINE_string(
    "bert_config_file",
    None,
    "The config of a checkpoint that is not a run's (default: the bert_config.json or config.json "
    "beside it).",
)
_GELU_FORM = flags.DEFINE_enum(
    "gelu_form",
    None,
    list(GeluForm),
    "The formula of gelu, if the config of an original checkpoint does not say it (default: "
    "gelu_tanh). The original's checkpoints of October 2018 were trained with gelu_erf, the exact "
    "form.",
)


@flags.multi_flags_validator(["run_dir", "checkpoint"])
def _name_one(values: dict[str, str | None]) -> bool:
    """Checks that the flags name one BERT.

    Raises:
      flags.ValidationError: they do not.
    """
    run_dir, checkpoint = values["run_dir"], values["checkpoint"]
    if not (run_dir or checkpoint):
        raise flags.ValidationError("give --run_dir or --checkpoint")
    if run_dir and checkpoint and not _STEP.fullmatch(checkpoint):
        raise flags.ValidationError("with --run_dir, --checkpoint must be a step, such as 600")
    return True


def read_given(average_last: int = 1) -> "Pretrained":
    """The BERT that the flags name.

    Args:
      average_last: the number of a run's newest checkpoints whose mean it is.

    Raises:
      UserError: it cannot be read, see `read_pretrained` and `read_average`.
    """
    # These imports take seconds, and the backend is chosen first.
    from modeling.checkpoints.pretrained import read_average, read_pretrained  # noqa: PLC0415
    from modeling.checkpoints.run_checkpoints import checkpoint_of_step  # noqa: PLC0415

    path = location(_RUN_DIR.value or _CHECKPOINT.value or "")
    is_run = bool(_RUN_DIR.value)
    if _RUN_DIR.value and _CHECKPOINT.value:
        step = int(_CHECKPOINT.value.removeprefix("step-"))
        path, is_run = checkpoint_of_step(path, step), False
    config_file = location(_BERT_CONFIG_FILE.value) if _BERT_CONFIG_FILE.value else None
    gelu_form = GeluForm(_GELU_FORM.value) if _GELU_FORM.value else None
    if is_run or average_last > 1:
        return read_average(path, average_last, config_file, gelu_form)
    return read_pretrained(path, config_file, gelu_form)
