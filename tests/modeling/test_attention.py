import numpy as np
import pytest
from keras import ops

from modeling.attention import attention_with_dropout
from modeling.dropout import dropout, dropout_key, example_keys

KEY = dropout_key(5)


def queries_keys_values_and_mask(seq_length=24):
    """Inputs for 3 examples and 2 heads. The second half of the last example is padding."""
    rng = np.random.default_rng(4)
    q, k, v = rng.standard_normal((3, 3, seq_length, 2, 8)).astype(np.float32)
    mask = np.ones((3, 1, seq_length, seq_length), bool)
    mask[2, ..., seq_length // 2 :] = False
    return q, k, v, mask


def attention_by_hand(q, k, v, mask, kept_and_scaled):
    q, k, v = (np.moveaxis(np.float64(x), 2, 1) for x in (q, k, v))
    weights = np.exp(q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])) * mask
    weights /= weights.sum(-1, keepdims=True)
    return np.moveaxis(weights * kept_and_scaled @ v, 1, 2)


@pytest.mark.parametrize("keys", [None, example_keys(KEY, np.arange(3))], ids=["no keys", "keys"])
def test_both_forms_of_attention_follow_the_formula(keys):
    inputs = queries_keys_values_and_mask()
    expected = attention_by_hand(*inputs, 1.0)
    *q_k_v, mask = (ops.convert_to_tensor(x) for x in inputs)
    np.testing.assert_allclose(ops.dot_product_attention(*q_k_v, mask=mask), expected, atol=1e-6)
    with_rate_0 = attention_with_dropout(*q_k_v, mask, 0.0, keys)
    np.testing.assert_allclose(with_rate_0, expected, atol=1e-6)


def test_attention_dropout_applies_to_the_probabilities():
    inputs = queries_keys_values_and_mask()
    kept_and_scaled = np.asarray(
        dropout(ops.ones((3, 2, 24, 24)), 0.25, example_keys(KEY, np.arange(3)))
    )
    expected = attention_by_hand(*inputs, kept_and_scaled)
    actual = attention_with_dropout(
        *map(ops.convert_to_tensor, inputs), 0.25, example_keys(KEY, np.arange(3))
    )
    np.testing.assert_allclose(actual, expected, atol=1e-6)
