"""BERT as an ONNX graph, with the layers of `modeling.bert` and `modeling.bert_for_pretraining`.

The graph is written node by node, not traced, so that a viewer shows BERT's structure. Initializers
have the original's variable names. A node and its only output are named after the layer and the
operator, such as `bert/encoder/layer_0/attention/self/query/MatMul`.

Shape suffixes of tensors: B batch, S sequence, H hidden, N heads, D head size (H = N·D),
F feed-forward, V vocabulary.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from modeling.config import LAYER_NORM_EPSILON, BertConfig, GeluForm, weight_shapes
from pipeline.errors import UserError

# The first opset with a GELU operator, and its file format; onnxruntime 1.17 reads both.
_OPSET, _IR_VERSION = 20, 9
# The limit for weights. It leaves room for the nodes, because protobuf's limit is 2 GiB.
_MAX_BYTES = 2_000_000_000
# Is added to the scores of padding, so that their exp is 0 in float32.
_MASKED_SCORE = -1e9


def onnx_model(config: BertConfig, weights: Mapping[str, np.ndarray]) -> onnx.ModelProto:
    """A BERT for batches of any size and any length up to `max_position_embeddings`.

    Inputs and outputs have the names of Hugging Face's models, so that Optimum runs it. The inputs
    are `input_ids`, `attention_mask` and `token_type_ids`, int64 [B, S]. The weights decide the
    outputs:

    - Without heads, the encoder's `last_hidden_state` [B, S, H] and, if there is a pooler,
      `pooler_output` [B, H].
    - With the masked-LM head, `logits` [B, S, V] and, if there are a pooler and a next-sentence
      head, `seq_relationship_logits` [B, 2].

    Running it on longer sequences fails, in a node whose name says why.

    Args:
      config: the model's size.
      weights: float32 arrays with the names and shapes of `weight_shapes`; the pooler and the heads
        may be missing.

    Raises:
      UserError: the weights exceed what one ONNX file can hold.
    """

    def has(part: str) -> bool:
        names = [name for name in weight_shapes(config) if name.startswith(part)]
        return bool(names) and all(name in weights for name in names)

    parts = ["bert/embeddings/", "bert/encoder/"]
    if has_heads := has("cls/predictions/"):
        parts.append("cls/predictions/")
    if has_pooled := has("bert/pooler/") and (not has_heads or has("cls/seq_relationship/")):
        parts += ["bert/pooler/", "cls/seq_relationship/"] if has_heads else ["bert/pooler/"]
    shapes = {
        name: shape
        for name, shape in weight_shapes(config).items()
        if name.startswith(tuple(parts))
    }
    num_bytes = 4 * sum(math.prod(shape) for shape in shapes.values())
    if num_bytes > _MAX_BYTES:
        raise UserError(
            f"the weights are {num_bytes / 1e9:.1f} GB, but an ONNX file holds at most "
            f"{_MAX_BYTES / 1e9:.0f} GB: choose another format"
        )
    graph = _BertGraph(config)
    (graph.cls if has_heads else graph.bert)(graph.encoder(), has_pooled)
    model = helper.make_model(
        helper.make_graph(graph.nodes, "bert", graph.inputs, graph.outputs),
        producer_name="clozemill",
        opset_imports=[helper.make_opsetid("", _OPSET)],
        ir_version=_IR_VERSION,
    )
    # Added last, one by one: make_graph and make_model would each copy all of them.
    initializers = {name: weights[name] for name in shapes} | graph.constants
    model.graph.initializer.extend(
        numpy_helper.from_array(values, name) for name, values in initializers.items()
    )
    return model


class _BertGraph:
    """The nodes of a BERT.

    A layer's method takes the layer's scope, which is the prefix of the names of its nodes and
    variables, and the names of its input tensors. It returns the name of its output tensor.
    """

    def __init__(self, config: BertConfig):
        self.config = config
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}

    def input(self, name: str, meaning: str) -> str:
        """Adds an input of the model, int64 [batch, sequence]."""
        shape = ("batch", "sequence")
        self.inputs.append(helper.make_tensor_value_info(name, TensorProto.INT64, shape, meaning))
        return name

    def output(self, name: str, tensor: str, *dims: str | int) -> str:
        """Turns a tensor that no node has read yet into a model output, float32 [batch, *dims]."""
        (node,) = (node for node in self.nodes if node.output[0] == tensor)
        node.output[0] = name
        self.outputs.append(
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ("batch", *dims))
        )
        return name

    def node(self, operator: str, scope: str, *inputs: Any, **attributes: Any) -> str:
        """Adds a node and returns the name of its output.

        Args:
          operator: the ONNX operator.
          scope: the layer's name.
          *inputs: names of tensors; floats, integers or lists of integers become constants.
          **attributes: the operator's attributes.
        """
        name = f"{scope}/{operator}"
        names = [
            value if isinstance(value, str) else f"{name}/input_{i}"
            for i, value in enumerate(inputs)
        ]
        for input_name, value in zip(names, inputs, strict=True):
            if not isinstance(value, str):
                dtype = np.float32 if isinstance(value, float) else np.int64
                self.constants[input_name] = np.array(value, dtype)
        self.nodes.append(helper.make_node(operator, names, [name], name, **attributes))
        return name

    def dense(self, scope: str, x: str) -> str:
        """A product with a kernel [in, out], and a bias."""
        x = self.node("MatMul", scope, x, f"{scope}/kernel")
        return self.node("Add", scope, x, f"{scope}/bias")

    def activated_dense(self, scope: str, x: str) -> str:
        """A dense layer with the config's activation."""
        x = self.dense(scope, x)
        if self.config.hidden_act == "relu":
            return self.node("Relu", scope, x)
        approximate = "tanh" if self.config.gelu_form == GeluForm.TANH else "none"
        return self.node("Gelu", scope, x, approximate=approximate)

    def layer_norm(self, scope: str, x_BSH: str) -> str:
        """A layer normalization under the original's name and with its epsilon."""
        scope = f"{scope}/LayerNorm"
        weights = f"{scope}/gamma", f"{scope}/beta"
        return self.node("LayerNormalization", scope, x_BSH, *weights, epsilon=LAYER_NORM_EPSILON)

    def embeddings(self, scope: str, input_ids_BS: str, segment_ids_BS: str) -> str:
        """Word + position + segment-type embeddings, normalized: [B, S] to [B, S, H]."""
        words, types, positions = (
            f"{scope}/{name}_embeddings" for name in ("word", "token_type", "position")
        )
        words_BSH = self.node("Gather", words, words, input_ids_BS)
        types_BSH = self.node("Gather", types, types, segment_ids_BS)
        shape_SH = self.node("Shape", scope, words_BSH, start=1)
        positions_SH = self.node("Slice", positions, positions, [0, 0], shape_SH)
        # For a sequence that is too long, Slice returns fewer rows and Reshape fails. An error of
        # onnxruntime holds the node's name.
        positions_SH = self.node("Reshape", positions, positions_SH, shape_SH)
        longest = self.config.max_position_embeddings
        self.nodes[-1].name = f"a sequence is longer than the {longest} tokens that this BERT reads"
        x_BSH = self.node("Add", types, words_BSH, types_BSH)
        return self.layer_norm(scope, self.node("Add", positions, x_BSH, positions_SH))

    def mask(self, scope: str, attention_mask_BS: str) -> str:
        """The term added to the scores, [B, 1, 1, S]: 0 for tokens, `_MASKED_SCORE` for padding.

        These nodes and those of `self_attention` have the form that onnxruntime's transformer
        optimizer recognizes and can replace with its own attention.
        """
        mask_B1S = self.node("Unsqueeze", f"{scope}/heads", attention_mask_BS, [1])
        mask_B11S = self.node("Unsqueeze", f"{scope}/queries", mask_B1S, [2])
        mask_B11S = self.node("Cast", scope, mask_B11S, to=TensorProto.FLOAT)
        return self.node("Mul", scope, self.node("Sub", scope, 1.0, mask_B11S), _MASKED_SCORE)

    def self_attention(self, scope: str, x_BSH: str, mask_B11S: str) -> str:
        """Scaled dot-product attention of N heads, before its output projection."""
        hidden_size, num_heads = self.config.hidden_size, self.config.num_attention_heads
        head_size = hidden_size // num_heads

        def heads(name: str, perm: list[int]) -> str:
            x_BSND = self.node(
                "Reshape", name, self.dense(name, x_BSH), [0, 0, num_heads, head_size]
            )
            return self.node("Transpose", name, x_BSND, perm=perm)

        q_BNSD = heads(f"{scope}/query", [0, 2, 1, 3])
        k_BNDS = heads(f"{scope}/key", [0, 2, 3, 1])
        v_BNSD = heads(f"{scope}/value", [0, 2, 1, 3])
        scores, context = f"{scope}/scores", f"{scope}/context"
        scores_BNSS = self.node("MatMul", scores, q_BNSD, k_BNDS)
        scores_BNSS = self.node("Div", scores, scores_BNSS, math.sqrt(head_size))
        scores_BNSS = self.node("Add", scores, scores_BNSS, mask_B11S)
        probabilities_BNSS = self.node("Softmax", scores, scores_BNSS, axis=-1)
        context_BNSD = self.node("MatMul", context, probabilities_BNSS, v_BNSD)
        context_BSND = self.node("Transpose", context, context_BNSD, perm=[0, 2, 1, 3])
        return self.node("Reshape", context, context_BSND, [0, 0, hidden_size])

    def residual_output(self, scope: str, x: str, residual_BSH: str) -> str:
        """Dense, residual, normalize: the end of both halves of a block."""
        x_BSH = self.node("Add", scope, self.dense(f"{scope}/dense", x), residual_BSH)
        return self.layer_norm(scope, x_BSH)

    def transformer_block(self, scope: str, x_BSH: str, mask_B11S: str) -> str:
        """Attention, then the feed-forward layer, each normalized after its residual."""
        context_BSH = self.self_attention(f"{scope}/attention/self", x_BSH, mask_B11S)
        x_BSH = self.residual_output(f"{scope}/attention/output", context_BSH, x_BSH)
        x_BSF = self.activated_dense(f"{scope}/intermediate/dense", x_BSH)
        return self.residual_output(f"{scope}/output", x_BSF, x_BSH)

    def pooler(self, scope: str, x_BSH: str) -> str:
        """The first token's output through a dense layer with tanh: [B, S, H] to [B, H]."""
        first_BH = self.node("Gather", scope, x_BSH, 0, axis=1)
        return self.node("Tanh", f"{scope}/dense", self.dense(f"{scope}/dense", first_BH))

    def encoder(self) -> str:
        """The embeddings and the blocks, from the model's inputs to [B, S, H]."""
        input_ids_BS = self.input("input_ids", "the tokens' ids in the vocabulary")
        attention_mask_BS = self.input("attention_mask", "1 for tokens, 0 for padding")
        token_type_ids_BS = self.input("token_type_ids", "0 for [CLS] A [SEP], 1 for B [SEP]")
        x_BSH = self.embeddings("bert/embeddings", input_ids_BS, token_type_ids_BS)
        mask_B11S = self.mask("bert/mask", attention_mask_BS)
        for i in range(self.config.num_hidden_layers):
            x_BSH = self.transformer_block(f"bert/encoder/layer_{i}", x_BSH, mask_B11S)
        return x_BSH

    def bert(self, x_BSH: str, has_pooled: bool) -> None:
        """The outputs of a BERT without heads."""
        x_BSH = self.output("last_hidden_state", x_BSH, "sequence", self.config.hidden_size)
        if has_pooled:
            pooled_BH = self.pooler("bert/pooler", x_BSH)
            self.output("pooler_output", pooled_BH, self.config.hidden_size)

    def logits(self, scope: str, x: str, weights: str) -> str:
        """A product with weights [out, in], and a bias."""
        x = self.node("MatMul", scope, x, self.node("Transpose", scope, weights))
        return self.node("Add", scope, x, f"{scope}/output_bias")

    def predictions(self, scope: str, x_BSH: str) -> str:
        """Logits over the vocabulary at all positions, by the tied word embeddings."""
        x_BSH = self.activated_dense(f"{scope}/transform/dense", x_BSH)
        x_BSH = self.layer_norm(f"{scope}/transform", x_BSH)
        return self.logits(scope, x_BSH, "bert/embeddings/word_embeddings")

    def cls(self, x_BSH: str, has_pooled: bool) -> None:
        """The outputs of the pretraining heads."""
        logits_BSV = self.predictions("cls/predictions", x_BSH)
        self.output("logits", logits_BSV, "sequence", self.config.vocab_size)
        if has_pooled:
            scope = "cls/seq_relationship"
            pooled_BH = self.pooler("bert/pooler", x_BSH)
            logits_B2 = self.logits(scope, pooled_BH, f"{scope}/output_weights")
            self.output("seq_relationship_logits", logits_B2, 2)
