"""Each upstream code generates through its own cache as its uncached pass does, with interventions and reads."""

import contextlib
import functools

import jax
import pytest

from mechjax.models import gemma, transformers, tunix
from tests.upstream import comparing, generating


@contextlib.contextmanager
def of_tunix(shape, structure_of):
  from flax import nnx

  from patches.tunix import PATCHER

  structure = structure_of(shape)
  yield tunix._assemble(shape, structure, comparing.drawn(nnx.to_pure_dict(structure[1])))
  PATCHER.uninstall()


tunix_llama = functools.partial(of_tunix, generating.LLAMA, tunix._qwen2)
tunix_gemma = functools.partial(of_tunix, generating.GEMMA, tunix._gemma3)


@contextlib.contextmanager
def package_gemma():
  from patches.gemma import PATCHER

  model = gemma._transformer(generating.GEMMA)
  with jax.numpy_dtype_promotion('standard'):
    shapes = jax.eval_shape(model.init, jax.random.key(0), jax.numpy.ones((1, 4), int))
  yield gemma._assemble(generating.GEMMA, comparing.drawn(shapes['params']))
  PATCHER.uninstall()


@contextlib.contextmanager
def flax_llama():
  from patches import transformers_flax

  transformers_flax.LLAMA_CORRECTIONS.install()
  blank = jax.ShapeDtypeStruct((1, 4), jax.numpy.int32)
  with jax.numpy_dtype_promotion('standard'):
    init = transformers._module(generating.LLAMA, 4).init
    shapes = jax.eval_shape(init, jax.random.key(0), blank, blank, blank)
  yield transformers._assemble(generating.LLAMA, comparing.drawn(shapes['params']))
  transformers_flax.LLAMA.uninstall()
  transformers_flax.LLAMA_CORRECTIONS.uninstall()


CODES = [
  pytest.param(tunix_llama, 2, marks=pytest.mark.upstream, id='tunix_llama'),
  pytest.param(tunix_gemma, 6, marks=pytest.mark.upstream, id='tunix_gemma'),
  pytest.param(package_gemma, 6, marks=pytest.mark.gemma),
  pytest.param(flax_llama, 2, marks=pytest.mark.transformers),
]


@pytest.mark.parametrize(('code', 'n_layers'), CODES)
def test_a_cache_changes_no_token_and_no_value(code, n_layers):
  with code() as forward:
    generating.check(forward)
    generating.check_cache_keeps_what_was_computed(forward, n_layers - 1)
    generating.check_edit(forward, 'from the last')


@pytest.mark.upstream
@pytest.mark.parametrize('where', generating.WHERES)
def test_an_edit_means_the_same_in_upstream_code(where):
  with tunix_llama() as forward:
    generating.check_edit(forward, where)
