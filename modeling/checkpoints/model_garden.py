"""Checkpoints of the TensorFlow Model Garden, which `tf.train.Checkpoint` writes.

Such a checkpoint holds a graph of Python objects. A variable's key is its path in that graph, for
example `encoder/layer_with_weights-4/_attention_layer/_query_dense/kernel`. The paths differ
between classes, releases, and `Checkpoint(model=…)` and `Checkpoint(encoder=…)`. But the graph also
has the full name of each variable, `transformer/layer_0/self_attention/query/kernel`, which tells
what it is.
"""

import math
import re

import numpy as np
from tensorflow.core.protobuf.trackable_object_graph_pb2 import TrackableObjectGraph

from pipeline.errors import UserError

OBJECT_GRAPH_NAME = "_CHECKPOINTABLE_OBJECT_GRAPH"

# How full names end, and the names in the original's checkpoints.
_LAYER, _OUR_LAYER = r"transformer/layer_(\d+)", r"bert/encoder/layer_\1"
_DENSE, _NORM = "(kernel|bias)", "(gamma|beta)"
_NAMES = (
    (r"word_embeddings/embeddings", r"bert/embeddings/word_embeddings"),
    (r"position_embedding/\w*embeddings", r"bert/embeddings/position_embeddings"),
    (r"type_embeddings/embeddings", r"bert/embeddings/token_type_embeddings"),
    (rf"embeddings/layer_norm/{_NORM}", r"bert/embeddings/LayerNorm/\1"),
    (
        rf"{_LAYER}/self_attention/(query|key|value)/{_DENSE}",
        rf"{_OUR_LAYER}/attention/self/\2/\3",
    ),
    # The second form is that of releases before 2.3.
    (
        rf"{_LAYER}/self_attention(?:/attention)?_output/{_DENSE}",
        rf"{_OUR_LAYER}/attention/output/dense/\2",
    ),
    (
        rf"{_LAYER}/self_attention_layer_norm/{_NORM}",
        rf"{_OUR_LAYER}/attention/output/LayerNorm/\2",
    ),
    (rf"{_LAYER}/(intermediate|output)/{_DENSE}", rf"{_OUR_LAYER}/\2/dense/\3"),
    (rf"{_LAYER}/output_layer_norm/{_NORM}", rf"{_OUR_LAYER}/output/LayerNorm/\2"),
    (rf"pooler_transform/{_DENSE}", r"bert/pooler/dense/\1"),
    (rf"(cls/predictions/transform/(?:dense/{_DENSE}|LayerNorm/{_NORM}))", r"\1"),
    (r"cls/predictions/output_bias/bias", r"cls/predictions/output_bias"),
    (rf"next_sentence/pooler_dense/{_DENSE}", r"bert/pooler/dense/\1"),
    # The heads of BertPretrainerV2 and of BertPretrainer.
    (
        r"(?:next_sentence|predictions/transform)/logits/kernel",
        "cls/seq_relationship/output_weights",
    ),
    (r"(?:next_sentence|predictions/transform)/logits/bias", "cls/seq_relationship/output_bias"),
)
_OF_AN_OPTIMIZER = re.compile(r"(^|/)(optimizer|\.OPTIMIZER_SLOT)/")


def keys_of_object_graph(graph: bytes, source: str) -> dict[str, str]:
    """The key of each variable in the checkpoint, by its name in the original's checkpoints.

    Variables that the original has not, such as those of other heads, are named by their own key.
    Those of the optimizer are left out.

    Args:
      graph: the serialized object graph.
      source: the checkpoint, in words.

    Raises:
      UserError: it is not the graph of one BERT.
    """
    full_names = {
        attribute.checkpoint_key: attribute.full_name
        for node in TrackableObjectGraph.FromString(graph).nodes
        for attribute in node.attributes
        if not _OF_AN_OPTIMIZER.search(attribute.checkpoint_key)
    }
    # The next-sentence head of BertPretrainerV2 has a pooler of its own, and leaves the encoder's
    # untrained.
    has_own_pooler = any("next_sentence/pooler_dense/" in name for name in full_names.values())
    keys: dict[str, str] = {}
    for key, full_name in full_names.items():
        is_untrained = has_own_pooler and "pooler_transform/" in full_name
        name = key if is_untrained else _original_name(full_name) or key
        if keys.setdefault(name, key) != key:
            raise UserError(f"{source} holds {name} twice, as {keys[name]} and {key}")
    if "bert/embeddings/word_embeddings" not in keys:
        raise UserError(
            f"{source} is an object checkpoint of TensorFlow 2, but of no BERT of the Model Garden"
        )
    return keys


def check_heads(source: str, name: str, shape: tuple[int, ...], num_attention_heads: int) -> None:
    """Checks the number of heads in the shape of a variable of attention.

    Raises:
      UserError: the config says another number.
    """
    if name.endswith("/self/query/bias") and len(shape) > 1 and shape[0] != num_attention_heads:
        raise UserError(
            f"{source} has {shape[0]} attention heads, but its config has num_attention_heads "
            f"{num_attention_heads}"
        )


def original_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a variable in the original's layout, from its shape in the Model Garden's.

    There, attention has an axis for the heads, and the head of next sentences is transposed.
    """
    if name == "cls/seq_relationship/output_weights":
        return shape[::-1]
    if "/attention/self/" in name:
        first, last = (shape[:1], shape[1:]) if name.endswith("kernel") else ((), shape)
        return *first, math.prod(last)
    if name.endswith("/attention/output/dense/kernel"):
        return math.prod(shape[:-1]), *shape[-1:]
    return shape


def original_values(name: str, values: np.ndarray) -> np.ndarray:
    """The values of a variable in the original's layout."""
    shape = original_shape(name, values.shape)
    return values.T if name == "cls/seq_relationship/output_weights" else values.reshape(shape)


def _original_name(full_name: str) -> str | None:
    for end, original in _NAMES:
        if match := re.fullmatch(rf"(?:.*/)?{end}", full_name):
            return match.expand(original)
    return None
