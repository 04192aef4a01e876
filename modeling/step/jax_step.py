"""One weight update and one evaluation of a batch, compiled by JAX."""

import ctypes
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import jax
import keras
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from modeling.attention import Kernel
from modeling.bert_for_pretraining import BertForPreTraining
from modeling.context import CONTEXT, Context
from modeling.job.group import ProcessGroup
from modeling.losses import batch_totals, pretraining_sums
from modeling.step import interface
from modeling.step.devices import check_context_parallel
from modeling.step.learner import Batch, Learner, with_rows
from pipeline.errors import UserError

_REPLICA = "replica"
_REPEATS = 3
# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8
_MOST = 2**31 - 1


def _keep_freed_memory() -> None:
    """Lets each step on a processor compute in the memory of the step before it.

    By default, glibc returns hundreds of megabytes to the system after each step. The system fills
    every page of the memory for the next step with zeros, which takes a third of a small model's
    time. Only the first of glibc's heaps keeps large blocks, so threads that have started before
    may undo this: a run that reads data finds its memory again in some of its starts only.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        for option, value in ((_M_ARENA_MAX, 1), (_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, _MOST)):
            libc.mallopt(option, value)


_keep_freed_memory()


def device_names() -> list[str]:
    """The names of this process's GPUs or TPUs."""
    return [device.device_kind for device in jax.local_devices() if device.platform != "cpu"]


def peak_memory() -> int | None:
    """The most memory that was in use on the GPU, in bytes; None without one."""
    statistics = jax.local_devices()[0].memory_stats()
    return statistics and statistics.get("peak_bytes_in_use")


class Replicas(interface.Replicas):
    """The devices of all processes, in one mesh of replicas by positions."""

    def __init__(self, group: ProcessGroup | None = None, context_parallel: int = 1):
        self.group = group = group or ProcessGroup()
        if group.num_processes > 1:
            # The group itself notices lost processes and signals; JAX would abort with a dump.
            jax.config.update("jax_enable_recoverability", True)
            jax.config.update("jax_enable_preemption_service", False)
            jax.config.update("jax_cpu_collectives_implementation", "gloo")
            address = group.addresses[0]
            jax.distributed.initialize(
                address,
                group.num_processes,
                group.process_id,
                cluster_detection_method="deactivate",
                # By default, JAX listens at all addresses of the host.
                coordinator_bind_address=address if address.startswith("127.") else None,
            )
        self.num_devices, self.local_count = jax.device_count(), jax.local_device_count()
        group.check_same({"the number of devices": self.local_count})
        of_processor = f"XLA_FLAGS=--xla_force_host_platform_device_count={context_parallel}"
        hint = "" if device_names() else f", or {of_processor}, which divides a processor"
        check_context_parallel(context_parallel, self.num_devices, self.local_count, hint)
        self.context = Context(context_parallel) if context_parallel > 1 else None
        self.count = self.num_devices // context_parallel
        self.num_readers = min(group.num_processes, self.count)
        devices = np.array(jax.devices()).reshape(self.count, context_parallel)
        mesh = jax.sharding.Mesh(devices, (_REPLICA, CONTEXT))
        self._shared = NamedSharding(mesh, PartitionSpec())
        self._divided = NamedSharding(mesh, PartitionSpec(_REPLICA))
        # This finds out whether the devices reach each other, before the first step.
        self.seconds_to_add(1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if self.group.num_processes == 1 or not (error is None or isinstance(error, SystemExit)):
            return
        # Process 0 shuts down last, because a process that loses JAX's service aborts.
        if not self.group.is_first:
            jax.distributed.shutdown()
        self.group.wait_for_all()
        if self.group.is_first:
            jax.distributed.shutdown()

    def own_context(self) -> NamedSharding:
        """Whole values on the devices of one context, those of this process among them."""
        mesh, own = self._shared.mesh, jax.local_devices()[0]
        devices = next(row for row in mesh.devices if own in row)
        return NamedSharding(jax.sharding.Mesh(devices, (CONTEXT,)), PartitionSpec())

    def share(self, variables: list[keras.Variable]) -> None:
        """Gives every device the values of the variables, which are equal in all processes."""
        for variable in variables:
            value = np.asarray(variable.value)
            variable.assign(
                jax.make_array_from_process_local_data(self._shared, value, value.shape)
            )

    def divide(self, batch: Batch) -> Batch:
        numbered = with_rows(batch, self.reader, self.num_readers)
        return {
            name: jax.make_array_from_process_local_data(self._divided, values)
            for name, values in numbered.items()
        }

    def compiled(self, step: Callable[..., Any], *arguments: Any) -> Any:
        """Compiles a step: each device gets the first argument whole and its part of the others."""
        shared, divided = PartitionSpec(), PartitionSpec(_REPLICA)
        on_all = jax.shard_map(
            step,
            mesh=self._shared.mesh,
            in_specs=(shared, *[divided] * (len(arguments) - 1)),
            out_specs=shared,
            check_vma=False,
        )
        # The new values reuse the memory of the old ones.
        return jax.jit(on_all, donate_argnums=0).lower(*arguments).compile()

    def seconds_to_add(self, num_numbers: int) -> float:
        if self.num_devices == 1:
            return 0.0
        numbers = jax.make_array_from_process_local_data(
            self._shared, np.zeros(num_numbers, np.float32), (num_numbers,)
        )
        add = self.compiled(_added_up, numbers)
        numbers = jax.block_until_ready(add(numbers))
        started = time.perf_counter()
        for _ in range(_REPEATS):
            numbers = jax.block_until_ready(add(numbers))
        return (time.perf_counter() - started) / _REPEATS


def _added_up(values: Any) -> Any:
    """The sums of all devices' values, in all devices."""
    return jax.lax.psum(values, (_REPLICA, CONTEXT))


class TrainStep(interface.TrainStep):
    """One function of all variables and a batch, compiled for all devices."""

    def __init__(self, learner: Learner, replicas: Replicas | None = None):
        self._learner = learner
        self._replicas = replicas or Replicas()
        self._variables = self._learner.variables
        self._replicas.share(self._variables)
        self._compiled: Any = None
        self._compiled_size = 0
        self._results: dict[str, Any] = {}

    def __call__(self, batch: Batch) -> dict[str, Any]:
        if not device_names():  # on a processor, a step that runs ahead takes as much memory again
            jax.block_until_ready(self._results)
        values = [variable.value for variable in self._variables]
        batch = self._replicas.divide(batch)
        if (size := len(batch["input_ids"])) != self._compiled_size:
            self._compiled_size = size
            self._kernel = self._learner.attention_kernel(batch, self._replicas.context)
            with _kernel_errors_explained(self._kernel):
                self._compiled = self._replicas.compiled(self._step, values, batch)
        values, self._results = self._compiled(values, batch)
        for variable, value in zip(self._variables, values, strict=True):
            variable.assign(value)
        return self._results

    def is_idle(self) -> bool:
        return all(value.is_ready() for value in self._results.values())

    @property
    def attention_kernel(self) -> str:
        assert not self._kernel.symbol or self._kernel.symbol in self._compiled.as_text()
        return self._kernel.name

    def _step(self, values: list[Any], batch: Batch) -> tuple[list[Any], dict[str, Any]]:
        """The update, as each device computes it from its part of the batch."""
        # The devices of a context have the same batch.
        totals = jax.lax.psum(batch_totals(batch), _REPLICA)
        with keras.StatelessScope(zip(self._variables, values, strict=True)):
            batch = self._learner.with_keys(batch)
        if self._learner.accumulation_steps == 1:
            sums, gradients = self._sums_and_gradients(values, batch, totals)
        else:
            sums, gradients = self._accumulated(values, self._learner.parts(batch), totals)
        sums, gradients = _added_up((sums, gradients))
        with keras.StatelessScope(zip(self._variables, values, strict=True)) as scope:
            applied = self._learner.apply(gradients)
        new_values = [scope.get_current_value(variable) for variable in self._variables]
        return new_values, {**totals, **sums, **applied}

    def _sums_and_gradients(
        self, values: list[Any], part: Batch, totals: Batch
    ) -> tuple[Any, list[Any]]:
        num_weights = len(self._learner.weights)

        def loss(weights: list[Any]) -> tuple[Any, Any]:
            current = [*weights, *values[num_weights:]]
            with keras.StatelessScope(zip(self._variables, current, strict=True)):
                return self._learner.loss(part, totals, self._replicas.context)

        gradients, sums = jax.grad(loss, has_aux=True)(values[:num_weights])
        return sums, gradients

    def _accumulated(self, values: list[Any], parts: Batch, totals: Batch) -> tuple[Any, list[Any]]:
        def add_part(so_far: list[Any], part: Batch) -> tuple[Any, Any]:
            sums, gradients = self._sums_and_gradients(values, part, totals)
            return [a + b for a, b in zip(so_far, gradients, strict=True)], sums

        zeros = [jax.numpy.zeros_like(value) for value in values[: len(self._learner.weights)]]
        gradients, sums = jax.lax.scan(add_part, zeros, parts)
        return jax.tree.map(jax.numpy.sum, sums), gradients


@contextmanager
def _kernel_errors_explained(kernel: Kernel) -> Iterator[None]:
    """Around a compilation: says which of the kernel's libraries cannot do its part."""
    try:
        yield
    except (NotImplementedError, RuntimeError, ValueError) as error:
        # Keras puts more lines around the library's, and makes that one bold.
        lines = re.sub(r"\x1b\[\d+m", "", str(error)).splitlines()
        says = [line.strip() for line in lines if kernel.library.lower() in line.lower()]
        if not kernel.library or not says:
            raise
        raise UserError(
            f"{kernel.library} cannot compute attention on this machine: {says[0]} "
            "(--precision=float32 does without it)"
        ) from error


def eval_step(
    model: BertForPreTraining, replicas: Replicas | None = None
) -> Callable[[Batch], dict[str, Any]]:
    """A function that returns a batch's totals and sums without dropout.

    It computes on one device of this process, or on the devices of its context. All processes of a
    context call it alike.
    """
    variables = model.trainable_variables
    if replicas and replicas.context:
        return _eval_step_of_context(model, replicas.context, replicas.own_context())

    @jax.jit
    def step(weights: list[Any], batch: Batch) -> dict[str, Any]:
        with keras.StatelessScope(zip(variables, weights, strict=True)):
            return {**batch_totals(batch), **pretraining_sums(model(batch), batch)}

    return lambda batch: step([each.value.addressable_data(0) for each in variables], batch)


def _eval_step_of_context(
    model: BertForPreTraining, context: Context, whole: NamedSharding
) -> Callable[[Batch], dict[str, Any]]:
    variables, devices = model.trainable_variables, whole.device_set

    def step(weights: list[Any], batch: Batch) -> dict[str, Any]:
        with keras.StatelessScope(zip(variables, weights, strict=True)):
            sums = context.sums(model, batch)
        return {**batch_totals(batch), **jax.lax.psum(sums, CONTEXT)}

    parts = PartitionSpec()
    on_all = jax.jit(
        jax.shard_map(step, mesh=whole.mesh, in_specs=parts, out_specs=parts, check_vma=False)
    )

    def run(batch: Batch) -> dict[str, Any]:
        shards = (each.value.addressable_shards for each in variables)
        values = (
            [shard.data for shard in of_weight if shard.device in devices] for of_weight in shards
        )
        weights = [
            jax.make_array_from_single_device_arrays(each.shape, whole, value)
            for each, value in zip(variables, values, strict=True)
        ]
        return on_all(
            weights,
            {
                name: jax.make_array_from_process_local_data(whole, value, value.shape)
                for name, value in batch.items()
            },
        )

    return run
