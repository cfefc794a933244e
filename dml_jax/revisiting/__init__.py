"""What exists only so that the numbers of the ICML 2020 code come out.

Roth et al., "Revisiting Training Strategies and Generalization Performance in Deep Metric Learning", ICML 2020, and
its code. The modules are imported by the tables that list them (`dml_jax.losses`, `dml_jax.miners`,
`dml_jax.samplers`), under whose names they are used.

The losses are those that are another function than PML's. Each kernel is one of the library's with what differs;
hyper-parameters default to that system's. Where its code does something else than its authors' paper says, the
default is what the paper says, and `parity=True` is what the code computes (and the published numbers may rest on).
Its networks normalise their output for all losses but n_pair, angular and generalized_lifted_structure.
"""

# The tables of losses, miners and samplers list what is in this package, which is made of theirs: the losses have to be
# imported before any module of it, whichever is asked for first.
import dml_jax.losses  # noqa: F401
