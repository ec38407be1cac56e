"""What a network is made of: the norm, the network and its operations. Needs only JAX and Flax."""
