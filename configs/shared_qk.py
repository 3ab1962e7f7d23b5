"""Figure 3 of the paper, left: full attention with shared or separate queries and keys.

The paper finds that sharing is not worse, and learns a little faster on enwik8. Setting
and variants are those of configs/ablation.py.

  python sweep.py --config=configs/shared_qk.py --workdir=runs/shared_qk
  python sweep.py --config=configs/shared_qk.py:tiny --config.data.path=FILE \\
      --workdir=runs/shared_qk                     2 CPU cores
  python reports/bits_per_dim.py runs/shared_qk
"""

from configs import ablation

get_config = ablation.get_full_attention


def sweep(add):
    add({'model.shared_qk': True})
    add({'model.shared_qk': False})
