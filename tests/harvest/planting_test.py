"""Writing values: each way of planting equals the same edit in plain numpy, and values that do not fit are refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mechjax import harvest
from mechjax.errors import HarvestError, SiteError
from tests.harvest.toy import MODELS, D, L, X, close, reference, scanned

MASK = np.array([True, False, True, False])


@MODELS
@pytest.mark.parametrize(
  ('plants', 'edit'),
  [
    ({'mlp_out.2': jnp.ones(D)}, lambda i, m: np.ones(D) if i == 2 else m),
    ({'mlp_out.{1,3}': jnp.stack([X, -X])}, lambda i, m: {1: X, 3: -X}.get(i, m)),
    ({'mlp_out.3': -X, 'mlp_out.1': X}, lambda i, m: {1: X, 3: -X}.get(i, m)),
    ({'mlp_out': jnp.zeros((L, D))}, lambda i, m: np.zeros(D)),
    (
      {'mlp_out.2': harvest.Masked(jnp.ones(D), MASK)},
      lambda i, m: np.where(MASK & (i == 2), 1, m),
    ),
    (
      {'mlp_out': harvest.Masked(jnp.ones((L, D)), MASK)},
      lambda i, m: np.where(MASK, 1, m),
    ),
    ({'mlp_out.{0,5}': lambda v: v * 2}, lambda i, m: m * (2 if i in (0, 5) else 1)),
    ({'mlp_out': lambda v: -v}, lambda i, m: -m),
    ({'mlp_out': harvest.At(4, jnp.ones(D))}, lambda i, m: np.ones(D) if i == 4 else m),
    (
      {'mlp_out': harvest.At(jnp.array([4, 1]), jnp.stack([X, -X]))},
      lambda i, m: {4: X, 1: -X}.get(i, m),
    ),
    ({'mlp_out': harvest.At(3, lambda v: v + 1)}, lambda i, m: m + 1 if i == 3 else m),
    (
      {'mlp_out': harvest.At(3, harvest.Masked(X, MASK))},
      lambda i, m: np.where(MASK & (i == 3), X, m),
    ),
  ],
  ids=lambda p: (
    '+'.join(f'{k}:{type(v).__name__}' for k, v in p.items()) if isinstance(p, dict) else ''
  ),
)
def test_planting_equals_the_edit(f, plants, edit):
  want, mlp, _ = reference(X, edit)
  close(harvest.plant(f)(plants, X), want)
  out, acts = harvest.harvest(f, sites='mlp_out')(plants, X)
  close(out, want)
  close(acts['mlp_out'], mlp)  # what flows on


@MODELS
def test_one_executable_sweeps_a_traced_layer(f):
  sweep = jax.jit(lambda layer: harvest.plant(f)({'mlp_out': harvest.At(layer, jnp.zeros(D))}, X))
  for i in range(L):
    close(sweep(i), reference(X, lambda j, m, i=i: m * (j != i))[0])
  assert sweep._cache_size() == 1
  many = jax.vmap(sweep)(jnp.arange(L))
  close(many[3], reference(X, lambda j, m: m * (j != 3))[0])


@MODELS
def test_the_derivative_may_stand_on_either_side(f):
  loss = lambda x: (f(x) ** 2).sum()  # noqa: E731
  for plants in (
    {'mlp_out.2': jnp.ones(D)},
    {'mlp_out.2': harvest.Masked(jnp.ones(D), MASK)},
    {'mlp_out': jnp.zeros((L, D))},
  ):
    inside = harvest.plant(jax.grad(loss))(plants, X)
    outside = jax.grad(lambda x, p=plants: harvest.plant(loss)(p, x))(X)
    np.testing.assert_allclose(inside, outside, rtol=1e-5, atol=1e-6)


def test_a_function_inside_a_derivative_is_an_error_not_a_wrong_gradient():
  with pytest.raises(HarvestError, match='derivative'):
    harvest.plant(jax.grad(lambda x: scanned(lambda b: b)(x).sum()))(
      {'mlp_out.2': lambda v: v * 2}, X
    )


@pytest.mark.parametrize(
  ('plants', 'error', 'says'),
  [
    ({'mlp_out.6': X}, SiteError, '6 layers'),
    ({'mlp_out': harvest.At(6, X)}, SiteError, 'no site matches'),
    ({'mlp_in.2': X}, SiteError, 'nearest'),
    ({'mlp_out.2': jnp.zeros(D + 1)}, HarvestError, r'shape \(5,\), the site has \(4,\)'),
    ({'mlp_out.2': jnp.zeros(D, jnp.int32)}, HarvestError, 'dtype int32'),
    ({'mlp_out.{1,2}': X}, HarvestError, 'selects 2 layers'),
    ({'mlp_out.2': harvest.Masked(X, jnp.ones(3, bool))}, HarvestError, 'mask'),
    ({'mlp_out.2': harvest.Masked(X, jnp.ones(D))}, HarvestError, 'not bool'),
    ({'mlp_out.2': lambda v: None}, HarvestError, 'return'),
    ({'mlp_out.2': lambda v: v[:2]}, HarvestError, 'shape'),
    ({'mlp_out.2': X, 'mlp_out.{1,2}': jnp.zeros((2, D))}, HarvestError, 'planted twice'),
    ({'mlp_out.2': X, 'mlp_out.3': lambda v: v}, HarvestError, 'several ways'),
  ],
  ids=lambda p: p if isinstance(p, str) else '',
)
def test_what_does_not_fit_is_an_error(plants, error, says):
  with pytest.raises(error, match=says):
    harvest.plant(scanned(lambda b: b))(plants, X)


@MODELS
@pytest.mark.parametrize('other', ['mlp_out.{1,2}', 'mlp_out'])
def test_two_values_at_one_site_are_refused(f, other):
  n = L if other == 'mlp_out' else 2
  for plants in ({'mlp_out.2': X, other: jnp.zeros((n, D))}, {'mlp_out.2': abs, other: abs}):
    with pytest.raises(HarvestError, match='planted twice'):
      harvest.plant(f)(plants, X)


@MODELS
def test_an_outer_harvest_sees_every_layer_with_the_planted_value_where_there_is_one(f):
  def inner(x):
    return harvest.plant(f)({'mlp_out.0': jnp.ones_like, 'mlp_out.3': lambda m: m + 1}, x)

  edit = lambda i, m: np.ones(D) if i == 0 else m + (i == 3)  # noqa: E731
  want, mlp, post = reference(X, edit)
  assert [s.site for s in harvest.sites_of(inner, X)] == [s.site for s in harvest.sites_of(f, X)]
  out, acts = harvest.call_and_reap(inner)(X)
  close(out, want)
  close(acts['mlp_out'], mlp)
  close(acts['resid_post'], post)
  _, acts, grads = harvest.value_and_grad_at(lambda x: inner(x).sum(), 'mlp_out')(X)
  close(acts['mlp_out'], mlp)
  assert jnp.abs(grads['mlp_out']).min() > 0


@MODELS
def test_of_two_harvests_the_outer_one_has_the_last_word(f):
  def inner(x):
    return harvest.plant(f)({'mlp_out.2': jnp.ones(D)}, x)

  close(harvest.plant(inner)({'mlp_out.2': X}, X), reference(X, lambda i, m: X if i == 2 else m)[0])
  double = harvest.plant(inner)({'mlp_out': lambda m: 2 * m}, X)
  close(double, reference(X, lambda i, m: 2 * np.ones(D) if i == 2 else 2 * m)[0])


LIKE = {
  'float32': jnp.float32(1),
  'bfloat16': jnp.bfloat16(1),
  'int32': jnp.int32(1),
  'uint8': jnp.uint8(1),
  'bool': jnp.array(True),
  'complex64': jnp.complex64(1),
}


@pytest.mark.parametrize('promotion', ['strict', 'standard'])
@pytest.mark.parametrize(
  ('site', 'value'),
  [
    ('float32', 2),
    ('float32', 1.5),
    ('float32', np.float32(1.5)),
    ('float32', np.float64(1.5)),
    ('float32', np.array(1.5)),
    ('bfloat16', 2),
    ('bfloat16', 1.5),
    ('int32', 2),
    ('int32', 2.0),
    ('int32', np.int64(2)),
    ('uint8', 255),
    ('bool', False),
    ('bool', np.bool_(False)),
    ('complex64', 2),
    ('complex64', 1.5j),
  ],
  ids=lambda v: v if isinstance(v, str) else repr(v),
)
def test_a_scalar_takes_the_dtype_of_its_site_where_nothing_is_lost(site, value, promotion):
  with jax.numpy_dtype_promotion(promotion):
    got = harvest.plant(lambda x: harvest.sow(x, name='a'))({'a': value}, LIKE[site])
  assert got.dtype == LIKE[site].dtype
  assert complex(got) == complex(value)


@pytest.mark.parametrize('promotion', ['strict', 'standard'])
@pytest.mark.parametrize(
  ('site', 'value', 'says'),
  [
    ('float32', True, 'dtype bool'),
    ('float32', 1j, 'dtype complex64'),
    ('float32', np.int32(2), 'dtype int32'),
    ('float32', jnp.bfloat16(2), 'dtype bfloat16'),
    ('bfloat16', np.float32(2), 'dtype float32'),
    ('int32', 1.5, 'dtype float32'),
    ('int32', 2**40, '1099511627776, which cannot be converted to int32'),
    ('int32', np.uint8(3), 'dtype uint8'),
    ('uint8', -1, 'converted to uint8'),
    ('bool', 1, 'dtype int32'),
    ('float32', 'one', "'one', which cannot be converted to float32"),
    ('float32', None, 'structure'),
    ('float32', [1.0], 'structure'),
  ],
  ids=repr,
)
def test_what_would_have_to_be_cast_is_an_error(site, value, says, promotion):
  with jax.numpy_dtype_promotion(promotion), pytest.raises(HarvestError, match=says):
    harvest.plant(lambda x: harvest.sow(x, name='a'))({'a': value}, LIKE[site])


def test_a_traced_layer_that_does_not_exist_is_an_error_where_it_is_known():
  plant = lambda layer: harvest.plant(scanned(lambda b: b))({'mlp_out': harvest.At(layer, X)}, X)  # noqa: E731
  for layer in (L, -1):
    with pytest.raises(SiteError, match='6 layers, 0 to 5'):
      plant(layer)
  close(jax.jit(plant)(L), reference(X)[0])  # and plants nothing where it is not
  with pytest.raises(HarvestError, match='twice'):
    harvest.plant(scanned(lambda b: b))(
      {'mlp_out': harvest.At(np.array([1, 1]), jnp.stack([X, X]))}, X
    )


def test_plants_that_are_not_a_dict_say_so():
  with pytest.raises(HarvestError, match='plants come first'):
    harvest.plant(scanned(lambda b: b))(X)
