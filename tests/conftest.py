import signal
import sys

import hypothesis
import pytest
from absl import flags

from reformer_jax.attention import numerics

# What is ignored where tests are started (nohup, a shell's background) would stay so in
# what they start.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# grain reads absl flags, which are parsed nowhere in a test run.
flags.FLAGS(sys.argv[:1])


# The same examples in every run; what is compiled first takes its time.
for _profile, _examples in (('quick', 50), ('thorough', 1000)):
    hypothesis.settings.register_profile(
        _profile,
        max_examples=_examples,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=[hypothesis.HealthCheck.too_slow],
    )
hypothesis.settings.load_profile('quick')


@pytest.fixture
def logits_per_step(monkeypatch):
    """Sets how many logits attention computes at once."""

    def choose(logits):
        monkeypatch.setattr(numerics, '_LOGITS_PER_STEP_ON_CPU', logits)

    return choose
