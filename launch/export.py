"""A run's newest checkpoint to a directory that fine-tuning stacks open."""

from pathlib import Path

from absl import flags

from modeling.huggingface import export_huggingface

_RUN_DIR = flags.DEFINE_string(
    "run_dir", None, "The run: the --output_dir of `clozemill pretrain`.", required=True
)
_OUTPUT_DIR = flags.DEFINE_string(
    "output_dir", None, "Where the checkpoint goes; must not hold anything.", required=True
)
_FORMAT = flags.DEFINE_enum(
    "format", "huggingface", ["huggingface"], "huggingface: what `from_pretrained` opens."
)


def main() -> None:
    """Exports and says where it went."""
    checkpoint = export_huggingface(Path(_RUN_DIR.value), Path(_OUTPUT_DIR.value))
    print(f"{_OUTPUT_DIR.value}: {checkpoint.name} of {_RUN_DIR.value}, for {_FORMAT.value}")
