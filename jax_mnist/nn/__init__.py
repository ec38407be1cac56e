"""The network, its operations and its normalisation layers. Needs only JAX and Flax."""
