"""One update of the weights and one evaluation of a batch, compiled by JAX."""

from collections.abc import Callable
from typing import Any

import jax
import keras

from modeling.losses import batch_totals, pretraining_sums
from modeling.pretraining import BertForPreTraining
from modeling.update import Batch, Update


def device_names() -> list[str]:
    """The names of the GPUs or TPUs."""
    return [device.device_kind for device in jax.local_devices() if device.platform != "cpu"]


def peak_memory() -> int | None:
    """The most memory that was in use on the GPU, in bytes; None without one."""
    statistics = jax.local_devices()[0].memory_stats()
    return statistics and statistics.get("peak_bytes_in_use")


class TrainStep:
    """Updates the weights by one batch at each call; the first call compiles."""

    def __init__(self, update: Update):
        self._update = update
        self._variables = update.variables
        self._compiled: Any = None
        self._told: dict[str, Any] = {}

    def __call__(self, batch: Batch) -> dict[str, Any]:
        """Gives the totals and sums of a batch of NumPy arrays, and what `Update.apply` tells."""
        values = [variable.value for variable in self._variables]
        if self._compiled is None:
            # The old values' memory is used for the new ones.
            self._compiled = jax.jit(self._step, donate_argnums=0).lower(values, batch).compile()
        values, told = self._compiled(values, batch)
        for variable, value in zip(self._variables, values, strict=True):
            variable.assign(value)
        self._told = told
        return told

    def is_idle(self) -> bool:
        """Whether the last step has ended."""
        return all(value.is_ready() for value in self._told.values())

    @property
    def attention_kernel(self) -> str:
        """What computes attention where its dropout is 0, once the step is compiled."""
        is_fused = "fmha" in self._compiled.as_text()
        return "cuDNN's fused kernel" if is_fused else "compiled by XLA"

    def _step(self, values: list[Any], batch: Batch) -> tuple[list[Any], dict[str, Any]]:
        totals = batch_totals(batch)
        with keras.StatelessScope(zip(self._variables, values, strict=True)):
            batch = self._update.with_keys(batch)
        if self._update.accumulation_steps == 1:
            gradients, sums = self._gradients_and_sums(values, batch, totals)
        else:
            gradients, sums = self._accumulated(values, self._update.parts(batch), totals)
        with keras.StatelessScope(zip(self._variables, values, strict=True)) as scope:
            told = self._update.apply(gradients)
        new_values = [scope.get_current_value(variable) for variable in self._variables]
        return new_values, {**totals, **sums, **told}

    def _gradients_and_sums(
        self, values: list[Any], part: Batch, totals: Batch
    ) -> tuple[list[Any], Any]:
        num_weights = len(self._update.weights)

        def loss(weights: list[Any]) -> tuple[Any, Any]:
            current = [*weights, *values[num_weights:]]
            with keras.StatelessScope(zip(self._variables, current, strict=True)):
                return self._update.loss(part, totals)

        return jax.grad(loss, has_aux=True)(values[:num_weights])

    def _accumulated(self, values: list[Any], parts: Batch, totals: Batch) -> tuple[list[Any], Any]:
        def add_part(so_far: list[Any], part: Batch) -> tuple[Any, Any]:
            gradients, sums = self._gradients_and_sums(values, part, totals)
            return [a + b for a, b in zip(so_far, gradients, strict=True)], sums

        zeros = [jax.numpy.zeros_like(value) for value in values[: len(self._update.weights)]]
        gradients, sums = jax.lax.scan(add_part, zeros, parts)
        return gradients, jax.tree.map(jax.numpy.sum, sums)


def eval_step(model: BertForPreTraining) -> Callable[[Batch], dict[str, Any]]:
    """A function that returns a batch's totals and sums without dropout."""

    @jax.jit
    def step(weights: list[Any], batch: Batch) -> dict[str, Any]:
        with keras.StatelessScope(zip(model.trainable_variables, weights, strict=True)):
            return {**batch_totals(batch), **pretraining_sums(model(batch), batch)}

    return lambda batch: step([variable.value for variable in model.trainable_variables], batch)
