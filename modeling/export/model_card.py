"""The model card of an exported BERT: what it is, how to use it and how it was trained."""

import math
import re
from typing import Any

from modeling.checkpoints.pretrained import Pretrained, Run
from modeling.checkpoints.tokenizer_settings import TokenizerSettings
from modeling.config import BertConfig, weight_shapes
from modeling.losses import NAMES_OF_PAIRS
from modeling.masking_schedule import MaskingSchedule
from modeling.training.evaluation import read_results
from modeling.training_options import ScheduleName
from pipeline.errors import UserError
from pipeline.manifest import CORPORA, Manifest
from pipeline.sentence_pairs import SentencePairs
from pipeline.storage import Location
from pipeline.templates import template_environment

_PAIRS = {
    SentencePairs.NEXT: "next sentences, or random ones",
    SentencePairs.ORDER: "two segments in their order, or swapped",
    SentencePairs.NONE: "none: each instance is one segment",
}
_TEMPLATE_NAME = "model_card.md.jinja"


def model_card(pretrained: Pretrained, tokenizer: TokenizerSettings) -> str:
    """The content of an export's README.md.

    Args:
      pretrained: the BERT.
      tokenizer: its tokenizer settings.

    Raises:
      UserError: the run does not record a fact that the card reports.
    """
    environment = template_environment("modeling.export")
    environment.filters |= {"count": "{:,}".format, "code": _code}
    missing = weight_shapes(pretrained.config).keys() - pretrained.weights.keys()
    run = pretrained.run
    try:
        data = _data(run.manifest) if run else {}
        training = _training(run, pretrained.config) if run else {}
        results, are_held_out = _results(pretrained.directory, run) if run else ({}, False)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UserError(
            f"{pretrained.source} does not record what the model card reports ({error!r}): it was "
            "made by another release of Clozemill"
        ) from error
    return environment.get_template(_TEMPLATE_NAME).render(
        config=pretrained.config,
        parameters=sum(values.size for values in pretrained.weights.values()),
        has_masked_lm_head=not any(name.startswith("cls/predictions/") for name in missing),
        has_pooler=pretrained.config.has_pooler,
        has_next_sentence_head=pretrained.config.has_pooler
        and not any(name.startswith("cls/seq_") for name in missing),
        tokenizer=tokenizer,
        strips_accents=tokenizer.strips_accents,
        packages=tokenizer.pre_tokenizer.packages if tokenizer.pre_tokenizer else (),
        run=run,
        data=data,
        training=training,
        results=results,
        are_held_out=are_held_out,
    )


def _code(value: str) -> str:
    """Text of any file as code in a cell of a Markdown table, where none of it becomes markup."""
    line = "".join(character if character.isprintable() else " " for character in value)
    # A table's cells are told apart before its code; some readers take a backslash for an escape.
    cell = re.sub(r"(\\*)\|", r"\1\1\\|", line)
    longest = max(map(len, re.findall("`+", cell)), default=0)
    fence, gap = "`" * (longest + 1), " " if longest else ""
    return f"{fence}{gap}{cell}{gap}{fence}"


def _data(manifest: Manifest) -> dict[str, str]:
    """The manifest's facts about the text and the instances made from it."""
    corpus, options, row = manifest.statistics["corpus"], manifest.options, manifest.row_limits
    instances = sum(shard.instances for shard in manifest.shards_of("train"))
    tokens = {"tokens per instance": f"at most {manifest.max_seq_length}"}
    if row.sequences > 1:
        tokens = {
            "tokens per sequence": f"at most {manifest.max_seq_length}",
            "instances": f"rows of {row.tokens} tokens, into which sequences are packed",
        }
    if manifest.is_adopted:
        return {
            "training instances": f"{instances:,}, made by other software",
            **tokens,
            "masked": f"{manifest.statistics['train']['share_masked']:.1%} of the tokens",
            "unknown": f"{corpus['share_unknown']:.3%} of the tokens are [UNK]",
            "SHA-256 of vocab.txt": manifest.vocab_sha256,
        }
    # The mean share of the passes, which have about the same number of tokens.
    shares = {
        name: sum(facts["shares_reached"]) / len(facts["shares_reached"])
        for name, facts in manifest.statistics.get(CORPORA, {}).items()
    }
    mixture = ", ".join(f"{name} {share:.1%}" for name, share in shares.items())
    return {
        "documents": f"{corpus['documents_tokenized']:,}",
        "sentences": f"{corpus['sentences_read']:,}",
        "tokens": f"{corpus['tokens']:,}, {corpus['share_unknown']:.3%} of them [UNK]",
        "text": f"{corpus['input_bytes'] / 1e6:,.1f} MB",
        **({"corpora, by training tokens": mixture} if mixture else {}),
        "training instances": f"{instances:,}, in {options['dupe_factor']} passes over the text",
        **tokens,
        "sentence pairs": _PAIRS[manifest.sentence_pairs],
        "masked": (
            "anew in each epoch"
            if manifest.masks_while_training
            else f"{options['masked_lm_prob']:.0%} of the tokens"
        ),
        "whole words masked": "yes" if options["do_whole_word_mask"] else "no",
        "word segmenter": str(options["word_segmenter"] or "none"),
        **(
            {"words": f"{manifest.pre_tokenizer}, {options['pre_tokenizer_packages']}"}
            if manifest.pre_tokenizer
            else {}
        ),
        "SHA-256 of vocab.txt": manifest.vocab_sha256,
    }


def _training(run: Run, config: BertConfig) -> dict[str, str]:
    """The checkpoint's facts about the training."""
    options = run.state.options
    averaged = {"weights": f"the mean of the {run.averaged} newest checkpoints"}
    sources = {"started from": run.state.started_from, "branched from": run.state.branched_from}
    extension = run.state.extension.describe(config) if run.state.extension else {}
    masks = {}
    if run.manifest.masks_while_training:
        given = options.get("masked_lm_prob") or run.manifest.options["masked_lm_prob"]
        masks = {"masked": MaskingSchedule(str(given)).describe()}
    return {
        **{name: source for name, source in sources.items() if source},
        **extension,
        "steps": f"{run.state.step:,} of {options['num_train_steps']:,} planned",
        **_frozen(options),
        **(averaged if run.averaged > 1 else {}),
        "sequences per step": f"{options['train_batch_size']:,}" + _batch_warmup(options),
        "optimizer": f"{options['optimizer']}, weight decay {options['weight_decay_rate']}",
        "learning rate": (
            f"{options['learning_rate']}, reached after {options['num_warmup_steps']:,} steps, "
            f"{_decay(options)}"
        ),
        **masks,
        "precision": str(options["precision"]),
        "seed": f"{options['random_seed']}",
    }


def _frozen(options: dict[str, Any]) -> dict[str, str]:
    steps = options.get("freeze_old_steps")  # earlier builds had no such steps
    if not steps:
        return {}
    return {"trained alone": f"the rows of new words, for the first {steps:,} steps"}


def _batch_warmup(options: dict[str, Any]) -> str:
    steps = options.get("batch_size_warmup_steps")  # earlier builds had no warm-up
    return f", growing from a sixth of that over the first {steps:,} steps" if steps else ""


def _decay(options: dict[str, Any]) -> str:
    """How the learning rate falls after its warm-up."""
    match options.get("learning_rate_schedule"):  # earlier builds had the linear one alone
        case ScheduleName.WARMUP_STABLE_DECAY if not options["num_decay_steps"]:
            return "then constant"
        case ScheduleName.WARMUP_STABLE_DECAY:
            return f"then constant, falling to 0 over the last {options['num_decay_steps']:,} steps"
        case ScheduleName.POLYNOMIAL:
            return f"then falling to 0 by the power {options['decay_power']}"
    return "then falling to 0"


def _results(run_dir: Location, run: Run) -> tuple[dict[str, str], bool]:
    """The losses and accuracies of exactly these weights; empty if they were not evaluated.

    Also returns whether they are on documents held out from the data of the training.
    """
    found = read_results(run_dir, run.state, run.manifest) if run.averaged == 1 else None
    if found is None:
        return {}, False
    results, are_held_out = found
    # Lines of metrics name no data set: it is that of the training. Earlier builds did not know it.
    unnamed = "that of the training" if are_held_out else "not recorded"
    sha256 = results.get("manifest_sha256")
    masked_lm = {}
    if (loss := results.get("masked_lm_loss")) is not None:
        masked_lm = {
            "masked-LM loss": f"{loss:.4f} nats, a perplexity of {math.exp(loss):.2f}",
            "masked-LM accuracy": f"{results['masked_lm_accuracy']:.2%}",
        }
    of_pairs = {}
    if (loss := results.get("next_sentence_loss")) is not None:
        task = NAMES_OF_PAIRS[run.manifest.sentence_pairs].replace(" ", "-")
        of_pairs = {
            f"{task} loss": f"{loss:.4f} nats",
            f"{task} accuracy": f"{results['next_sentence_accuracy']:.2%}",
        }
    facts = {
        "data set": results.get("data_dir") or unnamed,
        **({"SHA-256 of its manifest.json": sha256} if sha256 else {}),
        **masked_lm,
        **of_pairs,
    }
    for name, figures in (results.get("corpora") or {}).items():
        if "masked_lm_loss" in figures:
            facts[f"masked-LM loss and accuracy, {name}"] = (
                f"{figures['masked_lm_loss']:.4f} nats, {figures['masked_lm_accuracy']:.2%}"
            )
    return facts, are_held_out
