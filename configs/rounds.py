"""Figure 4 of the paper: LSH attention by its hash rounds, against full attention.

The paper's curves are of imagenet64: more rounds come closer to full attention, 8
almost match it. Full attention shares queries and keys, as LSH attention does. Setting
and variants are those of configs/ablation.py.

  python sweep.py --config=configs/rounds.py:imagenet64 --workdir=runs/rounds
  python sweep.py --config=configs/rounds.py:tiny --config.data.path=FILE \\
      --workdir=runs/rounds                        2 CPU cores
  python reports/bits_per_dim.py runs/rounds
"""

from configs import ablation

get_config = ablation.get_config


def sweep(add):
    add({'model.pattern': ('full',)})
    for rounds in (16, 8, 4, 2, 1):
        add({'model.rounds': rounds})
