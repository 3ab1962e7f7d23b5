import sys

from absl import flags

# grain reads absl flags, which are parsed nowhere in a test run.
flags.FLAGS(sys.argv[:1])
