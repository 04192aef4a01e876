"""One weight update, compiled by TensorFlow or JAX, on all devices.

::

    learner          Learner: model, optimizer, dropout keys and loss of one update
    interface        Replicas and TrainStep, which both backends implement
    tensorflow_step  the step compiled by TensorFlow
    jax_step         the step compiled by JAX
    backend          the step of the backend that Keras uses
    devices          names and peak FLOP/s of the devices
"""
