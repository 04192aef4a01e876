"""One weight update, compiled by TensorFlow or JAX, on all devices.

::

    learner          Learner: model, optimizer, dropout keys and loss of one update
    tensorflow_step  gradients of a Learner's loss, compiled by TensorFlow
    jax_step         gradients of a Learner's loss, compiled by JAX
    backend          the step of the backend that Keras uses, and what both steps implement
    devices          names and peak FLOP/s of the devices
"""
