"""A regularisation study of a tiny MNIST network, as one pure function per experiment."""
