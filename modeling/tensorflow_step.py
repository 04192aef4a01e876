"""One update of the weights and one evaluation of a batch, compiled by TensorFlow with XLA."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from modeling.losses import SUMS, batch_totals, pretraining_sums
from modeling.pretraining import BertForPreTraining
from modeling.update import Batch, Update


def device_names() -> list[str]:
    """The names of the GPUs."""
    devices = tf.config.list_physical_devices("GPU")
    details = [tf.config.experimental.get_device_details(device) for device in devices]
    return [detail.get("device_name", "GPU") for detail in details]


def peak_memory() -> int | None:
    """The most memory that was in use on the GPU, in bytes; None without one."""
    if not device_names():
        return None
    return tf.config.experimental.get_memory_info("GPU:0")["peak"]


class TrainStep:
    """Updates the weights by one batch at each call; the first call compiles.

    Attributes:
      attention_kernel: what computes attention where its dropout is 0.
    """

    attention_kernel = "compiled by XLA"

    def __init__(self, update: Update):
        self._update = update
        self._weights = [variable.value for variable in update.weights]
        self._compiled = tf.function(self._step, jit_compile=True, autograph=False)

    def __call__(self, batch: Batch) -> dict[str, Any]:
        """Gives the totals and sums of a batch of NumPy arrays, and what `Update.apply` tells."""
        return self._compiled(batch)

    def is_idle(self) -> bool:
        """Whether the last step has ended, as far as is known: TensorFlow does not tell."""
        return True

    def _step(self, batch: Batch) -> dict[str, Any]:
        totals = batch_totals(batch)
        batch = self._update.with_keys(batch)
        if self._update.accumulation_steps == 1:
            sums, gradients = self._sums_and_gradients(batch, totals)
        else:
            sums, gradients = self._accumulated(self._update.parts(batch), totals)
        return {**totals, **sums, **self._update.apply(gradients)}

    def _sums_and_gradients(self, part: Batch, totals: Batch) -> tuple[Any, list[Any]]:
        with tf.GradientTape() as tape:
            loss, sums = self._update.loss(part, totals)
        gradients = tape.gradient(loss, self._weights)
        return sums, [tf.convert_to_tensor(gradient) for gradient in gradients]

    def _accumulated(self, parts: Batch, totals: Batch) -> tuple[Any, list[Any]]:
        def add_part(number: Any, so_far: Any) -> tuple[Any, Any]:
            part = {name: values[number] for name, values in parts.items()}
            new = self._sums_and_gradients(part, totals)
            return number + 1, tf.nest.map_structure(tf.add, so_far, new)

        zeros = dict.fromkeys(SUMS, tf.zeros(())), [tf.zeros(w.shape) for w in self._weights]
        steps = self._update.accumulation_steps
        return tf.while_loop(lambda number, _: number < steps, add_part, (0, zeros))[1]


def eval_step(model: BertForPreTraining) -> Callable[[Batch], dict[str, Any]]:
    """A function that returns a batch's totals and sums without dropout."""

    @tf.function(jit_compile=True, autograph=False)
    def step(batch: Batch) -> dict[str, Any]:
        return {**batch_totals(batch), **pretraining_sums(model(batch), batch)}

    return step
