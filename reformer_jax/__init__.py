"""The Reformer (Kitaev, Kaiser, Levskaya 2020, arXiv:2001.04451) in JAX and Flax."""
