"""BERT as an ONNX graph, with the layers of `modeling.bert` and `modeling.bert_for_pretraining`.

The graph is written node by node, not traced, so that a viewer shows BERT's structure. Initializers
have the original's variable names. A node and its only output are named after the layer and the
operator, such as `bert/encoder/layer_0/attention/self/query/MatMul`.

Shape suffixes of tensors: B batch, S sequence, P predictions, H hidden, N heads, D head size
(H = N·D), F feed-forward, V vocabulary.
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


def onnx_model(
    config: BertConfig, weights: Mapping[str, np.ndarray], heads: bool
) -> onnx.ModelProto:
    """The encoder, for batches of any size and any length up to `max_position_embeddings`.

    Its inputs are `input_ids`, `input_mask` and `segment_ids`, int64 [B, S]; its outputs are
    `sequence_output` [B, S, H] and `pooled_output` [B, H]. With heads, it also has the input
    `masked_lm_positions`, int64 [B, P], and the outputs `masked_lm_logits` [B, P, V] and
    `next_sentence_logits` [B, 2]. Running it on longer sequences fails.

    Args:
      config: the model's size.
      weights: float32 arrays with the names and shapes of `weight_shapes`; without heads, those
        that begin with `bert/` are enough.
      heads: whether to include the two pretraining heads.

    Raises:
      UserError: the weights exceed what one ONNX file can hold.
    """
    shapes = {
        name: shape
        for name, shape in weight_shapes(config).items()
        if heads or name.startswith("bert/")
    }
    num_bytes = 4 * sum(math.prod(shape) for shape in shapes.values())
    if num_bytes > _MAX_BYTES:
        raise UserError(
            f"the weights are {num_bytes / 1e9:.1f} GB, but an ONNX file holds at most "
            f"{_MAX_BYTES / 1e9:.0f} GB: choose another format"
        )
    graph = _BertGraph(config)
    sequence_output, pooled_output = graph.bert()
    if heads:
        graph.cls(sequence_output, pooled_output)
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

    def input(self, name: str, dim: str, meaning: str) -> str:
        """Adds an input of the model, int64 [batch, dim]."""
        self.inputs.append(
            helper.make_tensor_value_info(name, TensorProto.INT64, ("batch", dim), meaning)
        )
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
        # For a sequence that is too long, Slice returns fewer rows and Reshape fails.
        positions_SH = self.node("Reshape", positions, positions_SH, shape_SH)
        x_BSH = self.node("Add", types, words_BSH, types_BSH)
        return self.layer_norm(scope, self.node("Add", positions, x_BSH, positions_SH))

    def mask(self, scope: str, input_mask_BS: str) -> str:
        """The term added to the scores, [B, 1, 1, S]: 0 for tokens, `_MASKED_SCORE` for padding.

        These nodes and those of `self_attention` have the form that onnxruntime's transformer
        optimizer recognizes and can replace with its own attention.
        """
        mask_B1S = self.node("Unsqueeze", f"{scope}/heads", input_mask_BS, [1])
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

    def bert(self) -> tuple[str, str]:
        """The embeddings, the encoder and the pooler, from inputs to outputs."""
        input_ids_BS = self.input("input_ids", "sequence", "the tokens' ids in the vocabulary")
        input_mask_BS = self.input("input_mask", "sequence", "1 for tokens, 0 for padding")
        segment_ids_BS = self.input("segment_ids", "sequence", "0 for [CLS] A [SEP], 1 for B [SEP]")
        x_BSH = self.embeddings("bert/embeddings", input_ids_BS, segment_ids_BS)
        mask_B11S = self.mask("bert/mask", input_mask_BS)
        for i in range(self.config.num_hidden_layers):
            x_BSH = self.transformer_block(f"bert/encoder/layer_{i}", x_BSH, mask_B11S)
        x_BSH = self.output("sequence_output", x_BSH, "sequence", self.config.hidden_size)
        pooled_BH = self.pooler("bert/pooler", x_BSH)
        return x_BSH, self.output("pooled_output", pooled_BH, self.config.hidden_size)

    def logits(self, scope: str, x: str, weights: str) -> str:
        """A product with weights [out, in], and a bias."""
        x = self.node("MatMul", scope, x, self.node("Transpose", scope, weights))
        return self.node("Add", scope, x, f"{scope}/output_bias")

    def predictions(self, scope: str, x_BSH: str, positions_BP: str) -> str:
        """Logits over the vocabulary at the masked positions, by the tied word embeddings."""
        positions_BP1 = self.node("Unsqueeze", scope, positions_BP, [2])
        x_BPH = self.node("GatherND", scope, x_BSH, positions_BP1, batch_dims=1)
        x_BPH = self.activated_dense(f"{scope}/transform/dense", x_BPH)
        x_BPH = self.layer_norm(f"{scope}/transform", x_BPH)
        return self.logits(scope, x_BPH, "bert/embeddings/word_embeddings")

    def cls(self, sequence_output_BSH: str, pooled_output_BH: str) -> None:
        """Both pretraining heads, from the encoder's outputs to their own."""
        positions_BP = self.input(
            "masked_lm_positions", "predictions", "the positions of masked tokens"
        )
        logits_BPV = self.predictions("cls/predictions", sequence_output_BSH, positions_BP)
        self.output("masked_lm_logits", logits_BPV, "predictions", self.config.vocab_size)
        scope = "cls/seq_relationship"
        logits_B2 = self.logits(scope, pooled_output_BH, f"{scope}/output_weights")
        self.output("next_sentence_logits", logits_B2, 2)
