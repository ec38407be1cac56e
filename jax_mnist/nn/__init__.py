"""The network, its convolutions and its normalisation layers. Needs only JAX and Flax."""
