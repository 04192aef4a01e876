"""One weight update and one evaluation of a batch, compiled by TensorFlow with XLA."""

import logging
import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Self

import tensorflow as tf

from modeling.bert_for_pretraining import BertForPreTraining
from modeling.job.group import ProcessGroup
from modeling.losses import batch_totals, pretraining_sums
from modeling.step import interface
from modeling.step.devices import check_backend_of_context
from modeling.step.learner import Batch, Learner, with_rows
from modeling.training_options import Precision

_by_xla = partial(tf.function, jit_compile=True, autograph=False)
_REPEATS = 3
# A warm-up of the batch size compiles the step several times, and says so itself.
logging.getLogger("tensorflow").addFilter(lambda record: "retracing" not in record.getMessage())
# For `_around_products`; they change nothing else.
os.environ["TF_XLA_FLAGS"] = " ".join(
    ["--tf_xla_cpu_global_jit", "--tf_xla_ops_to_cluster=FUSIBLE", os.getenv("TF_XLA_FLAGS", "")]
)


def device_names() -> list[str]:
    """The names of this process's GPUs."""
    devices = tf.config.list_physical_devices("GPU")
    details = [tf.config.experimental.get_device_details(device) for device in devices]
    return [detail.get("device_name", "GPU") for detail in details]


def peak_memory() -> int | None:
    """The most memory that was in use on the GPU, in bytes; None without one."""
    if not device_names():
        return None
    return tf.config.experimental.get_memory_info("GPU:0")["peak"]


def _around_products(function: Callable[..., Any]) -> Any:
    """Compiles a function by XLA, except for its products, which oneDNN computes.

    In bfloat16, oneDNN's products are twice as fast as XLA's, where the processor has instructions
    for them.
    """
    tf.config.optimizer.set_jit("autoclustering")
    return tf.function(function, autograph=False)


def _compiler_for(learner: Learner) -> Callable[..., Any]:
    is_bfloat16 = learner.model.precision == Precision.BFLOAT16
    return _around_products if is_bfloat16 and not device_names() else _by_xla


class Replicas(interface.Replicas):
    """The devices of all processes.

    Attributes:
      strategy: what connects them.
    """

    def __init__(self, group: ProcessGroup | None = None, context_parallel: int = 1):
        check_backend_of_context(context_parallel, "tensorflow")
        self.group = group = group or ProcessGroup()
        self.context, self.num_readers = None, group.num_processes
        kind = "GPU" if tf.config.list_physical_devices("GPU") else "CPU"
        if group.num_processes > 1:
            group.check_same({"the number of devices": len(tf.config.list_physical_devices(kind))})
            self.strategy: tf.distribute.Strategy = tf.distribute.MultiWorkerMirroredStrategy(
                tf.distribute.cluster_resolver.SimpleClusterResolver(
                    tf.train.ClusterSpec({"worker": group.addresses}),
                    task_type="worker",
                    task_id=group.process_id,
                    rpc_layer="grpc",
                )
            )
        else:
            devices = tf.config.list_logical_devices(kind)
            self.strategy = (
                tf.distribute.MirroredStrategy([device.name for device in devices])
                if len(devices) > 1
                else tf.distribute.get_strategy()
            )
        self.count = self.num_devices = self.strategy.num_replicas_in_sync
        self.local_count = self.count // group.num_processes

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def divide(self, batch: Batch) -> Any:
        if self.count == 1:
            return batch
        numbered = with_rows(batch, self.group.process_id, self.group.num_processes)
        return self.strategy.experimental_distribute_values_from_function(
            lambda context: {
                name: tf.convert_to_tensor(
                    values.reshape(self.local_count, -1, *values.shape[1:])[self.index(context)]
                )
                for name, values in numbered.items()
            }
        )

    def index(self, context: Any) -> int:
        """The number of a device among the devices of this process."""
        number = context.replica_id_in_sync_group  # inside a tf.function, a constant tensor
        return int(tf.get_static_value(number)) % self.local_count

    def seconds_to_add(self, num_numbers: int) -> float:
        if self.count == 1:
            return 0.0

        @tf.function(autograph=False)
        def add() -> Any:
            return self.strategy.run(lambda: added_up(tf.zeros(num_numbers)))

        add()
        started = time.perf_counter()
        for _ in range(_REPEATS):
            self.strategy.experimental_local_results(add())[0].numpy()
        return (time.perf_counter() - started) / _REPEATS


def added_up(values: Any) -> Any:
    """The sums of all devices' values, in all devices."""
    context = tf.distribute.get_replica_context()
    if context.num_replicas_in_sync == 1:
        return values
    return context.all_reduce(tf.distribute.ReduceOp.SUM, values)


class TrainStep(interface.TrainStep):
    """One compiled step for one device; compiled parts with exchanges between them for several.

    Several devices exchange totals and gradients outside the compiled parts, because TensorFlow's
    XLA cannot exchange anything. Each device has its own copy of all variables, and all copies are
    updated alike.
    """

    def __init__(self, learner: Learner, replicas: Replicas | None = None):
        self._learner = learner
        self._replicas = replicas = replicas or Replicas()
        if replicas.count == 1:
            self._run = _compiler_for(learner)(_Replica(learner).step)
            return
        self._copies = [_Replica(learner)]
        for device in replicas.strategy.extended.worker_devices[1:]:
            with tf.device(device):
                self._copies.append(_Replica(learner.copy()))
        for copy in self._copies:
            copy.compile_parts()
        self._run = tf.function(self._run_on_all, autograph=False)

    def __call__(self, batch: Batch) -> dict[str, Any]:
        self._kernel = self._learner.attention_kernel(batch)
        return self._run(self._replicas.divide(batch))

    @property
    def attention_kernel(self) -> str:
        return self._kernel.name

    def is_idle(self) -> bool:
        return True  # TensorFlow does not say

    def _run_on_all(self, batch: Any) -> dict[str, Any]:
        def run(part: Batch) -> dict[str, Any]:
            index = self._replicas.index(tf.distribute.get_replica_context())
            return self._copies[index].step(part)

        results = self._replicas.strategy.run(run, (batch,))
        return {
            name: self._replicas.strategy.experimental_local_results(value)[0]
            for name, value in results.items()
        }


class _Replica:
    """The update, as one device computes it with its own copy of the variables."""

    def __init__(self, learner: Learner):
        self._learner = learner
        self._weights = [variable.value for variable in learner.weights]
        self._totals: Callable[..., Any] = batch_totals
        self._sums_and_gradients: Callable[..., Any] = self._sums_and_gradients_of_all
        self._apply: Callable[..., Any] = learner.apply

    def compile_parts(self) -> None:
        """Compiles the parts between the exchanges with other devices."""
        compiled = _compiler_for(self._learner)
        self._totals = compiled(self._totals)
        self._sums_and_gradients = compiled(self._sums_and_gradients)
        gradients = [tf.TensorSpec(weight.shape, weight.dtype) for weight in self._weights]
        # Traced here, because Keras's optimizer would add the gradients up once more inside the
        # strategy.
        self._apply = compiled(self._apply).get_concrete_function(gradients)

    def step(self, batch: Batch) -> dict[str, Any]:
        """One update; all devices call it at once."""
        totals = added_up(self._totals(batch))
        sums, gradients = added_up(self._sums_and_gradients(batch, totals))
        return {**totals, **sums, **self._apply(gradients)}

    def _sums_and_gradients_of_all(self, batch: Batch, totals: Batch) -> tuple[Any, list[Any]]:
        batch = self._learner.with_keys(batch)
        if self._learner.accumulation_steps == 1:
            return self._sums_and_gradients_of(batch, totals)
        return self._accumulated(self._learner.parts(batch), totals)

    def _sums_and_gradients_of(self, part: Batch, totals: Batch) -> tuple[Any, list[Any]]:
        with tf.GradientTape() as tape:
            loss, sums = self._learner.loss(part, totals)
        gradients = tape.gradient(loss, self._weights)
        return sums, [tf.convert_to_tensor(gradient) for gradient in gradients]

    def _accumulated(self, parts: Batch, totals: Batch) -> tuple[Any, list[Any]]:
        def add_part(number: Any, so_far: Any) -> tuple[Any, Any]:
            part = {name: values[number] for name, values in parts.items()}
            new = self._sums_and_gradients_of(part, totals)
            return number + 1, tf.nest.map_structure(tf.add, so_far, new)

        sums = dict.fromkeys(self._learner.names_of_sums, tf.zeros(()))
        zeros = sums, [tf.zeros(weight.shape) for weight in self._weights]
        steps = self._learner.accumulation_steps
        return tf.while_loop(lambda number, _: number < steps, add_part, (0, zeros))[1]


def eval_step(
    model: BertForPreTraining, _replicas: Replicas | None = None
) -> Callable[[Batch], dict[str, Any]]:
    """A function that returns a batch's totals and sums without dropout, on one device."""

    @_by_xla
    def step(batch: Batch) -> dict[str, Any]:
        return {**batch_totals(batch), **pretraining_sums(model(batch), batch)}

    return step
