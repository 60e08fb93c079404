"""Everything that a function reads is part of it: closures, globals, attributes, patches, planted functions.

The truth is the plain call after the change.
"""

import importlib
import math
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mechjax
from mechjax import harvest, sites
from mechjax.errors import SiteError
from mechjax.patcher import Patcher
from tests.harvest.state.places import KINDS, Settings, every_place
from tests.harvest.state.ways import TOKENS, WAYS, X, by_reap, tiny


@pytest.fixture
def restored(monkeypatch):
  """Restores state that outlives a test."""
  monkeypatch.setattr(Settings, 'scale', 1.0)
  monkeypatch.setenv('SCALE_OF_STATE', '1')


@pytest.mark.usefixtures('restored')
@pytest.mark.parametrize('kind', KINDS)
def test_what_a_function_reads_is_seen_when_it_changes(kind):
  inner, change = every_place()[kind]

  def f(x):
    return harvest.sow(inner(x), name='logits')

  before = f(X)
  for way in WAYS:
    way(f, X)
  change()
  assert not np.allclose(f(X), before)
  for way in WAYS:
    np.testing.assert_allclose(way(f, X), f(X), rtol=1e-6)


@pytest.mark.usefixtures('restored')
@pytest.mark.parametrize('kind', KINDS)
def test_what_a_planted_function_reads_is_seen_when_it_changes(kind):
  edit, change = every_place()[kind]
  planted = harvest.plant(lambda x: harvest.sow(x, name='a') + 1)
  before = planted({'a': edit}, X)
  np.testing.assert_allclose(before, edit(X) + 1, rtol=1e-6, atol=1e-6)
  change()
  assert not np.allclose(edit(X) + 1, before)
  np.testing.assert_allclose(planted({'a': edit}, X), edit(X) + 1, rtol=1e-6, atol=1e-6)


def test_a_closed_over_zero_has_a_sign():
  zero = -0.0

  def f(x):
    return harvest.sow(x + math.copysign(1.0, zero), name='logits')

  for zero in (-0.0, 0.0):  # noqa: B007
    np.testing.assert_array_equal(by_reap(f, X), f(X))


def test_a_sweep_over_a_number_that_a_planted_function_closes_over():
  model, direction = tiny(), jnp.linspace(-1.0, 1.0, 16)
  strength = 0.0

  def steer(x):
    return x + strength * direction

  planted = harvest.plant(model)
  for strength in (0.0, 1.0, 4.0):
    want = harvest.plant(model)({'resid_post.1': lambda x, s=strength: x + s * direction}, TOKENS)
    np.testing.assert_allclose(planted({'resid_post.1': steer}, TOKENS), want, rtol=1e-5, atol=1e-6)


def test_a_patch_is_seen_after_an_error_that_asked_for_it(tmp_path, monkeypatch):
  (tmp_path / 'upstream_of_state.py').write_text(
    textwrap.dedent("""
      import jax
      import jax.numpy as jnp

      @jax.jit
      def block(x):
        h = jnp.tanh(x)
        return h * 2
    """)
  )
  monkeypatch.syspath_prepend(tmp_path)
  upstream = importlib.import_module('upstream_of_state')
  patcher = Patcher(
    'upstream_of_state',
    {'block': ['h = jnp.tanh(x)', "h = harvest.sow(jnp.tanh(x), name='logits')"]},
    names={'harvest': harvest},
  )

  def f(x):
    return upstream.block(x)

  reap, iterate = harvest.reap(f, sites='logits'), mechjax.iterate(f, sites='logits')
  for _ in range(2):
    with pytest.raises(SiteError):
      reap(X)
    with pytest.raises(SiteError):
      iterate(X)
  with patcher:
    np.testing.assert_allclose(reap(X)['logits'], jnp.tanh(X), rtol=1e-6)
    ((_, _, value),) = list(iterate(X))
    np.testing.assert_allclose(value, jnp.tanh(X), rtol=1e-6)
  with pytest.raises(SiteError):
    reap(X)
  del sys.modules['upstream_of_state']


def test_layers_in_a_jitted_block_are_still_told_apart_after_a_change():
  scale = [1.0]

  @jax.jit
  def block(x):
    return harvest.sow(jnp.tanh(x), name='mlp_out')

  def f(x):
    for i in range(3):
      with sites.layer(i):
        x = x + scale[0] * block(x)
    return x

  def by_hand(x):
    seen = []
    for _ in range(3):
      seen.append(jnp.tanh(x))
      x = x + scale[0] * seen[-1]
    return seen

  for scale[0] in (1.0, 2.0, 1.0):
    acts = harvest.reap(f, sites='mlp_out')(X)
    for i, value in enumerate(by_hand(X)):
      np.testing.assert_allclose(acts[f'mlp_out.{i}'], value, rtol=1e-6)
