"""Figure 5 of the paper, left: LSH attention in models of 3, 6, 12 and 20 layers.

The paper's curves are of enwik8 and of up to 20 layers on one device, which is what
reversible layers are for (3, 6 and 12 below that are ours). Setting and variants are
those of configs/ablation.py. Not run yet.

  python sweep.py --config=configs/depth.py --workdir=runs/depth
  python sweep.py --config=configs/depth.py:tiny --config.data.path=FILE \\
      --workdir=runs/depth                         2 CPU cores
  python reports/bits_per_dim.py runs/depth
"""

from configs import ablation

get_config = ablation.get_config


def sweep(add):
    for layers in (3, 6, 12, 20):
        add({'model.layers': layers})
