"""Figure 3 of the paper, right: reversible layers against regular ones.

The paper finds nearly the same curves. Compared are the reversible stack, the same
function with saved activations (the two must agree: the inversion is exact) and the
Transformer's single residual stream, which is another function of as many parameters.
Full attention; setting and variants are those of configs/ablation.py.

  python sweep.py --config=configs/reversible.py --workdir=runs/reversible
  python sweep.py --config=configs/reversible.py:tiny --config.data.path=FILE \\
      --workdir=runs/reversible                    2 CPU cores
  python reports/bits_per_dim.py runs/reversible
"""

from configs import ablation

get_config = ablation.get_full_attention


def sweep(add):
    add({'model.stack': 'reversible'})
    add({'model.stack': 'residual'})
    add({'model.stack': 'residual', 'model.streams': 1})
