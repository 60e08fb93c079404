"""We read the files of the published dictionary-learning, with equal latents and reconstructions, and pursue like it.

Its classes are run out of its wheel, fetched without its dependencies: the package depends on a whole laboratory of
interpretability, of which its dictionaries need PyTorch and einops. It imports one name of nnsight when it is imported
itself, and never uses it here.
"""

import json
import subprocess
import sys
import types

import jax
import numpy as np
import pytest

from mechjax.sae.formats import load
from mechjax.sae.pursuit import Pursuit
from tests.sae.pursuit import dense

pytestmark = pytest.mark.truth

RELEASE = 'dictionary-learning==0.1.0'
D, M, K = 7, 24, 3
KINDS = {
  'AutoEncoder': (),
  'AutoEncoderNew': (),
  'GatedAutoEncoder': (),
  'JumpReluAutoEncoder': (),
  'AutoEncoderTopK': (K,),
  'BatchTopKSAE': (K,),
  'MatryoshkaBatchTopKSAE': (K, [4, 8, 12]),
}


@pytest.fixture(scope='module')
def published(tmp_path_factory):
  """The classes by name, and the pursuit."""
  directory = tmp_path_factory.mktemp('wheel')
  command = [sys.executable, '-m', 'pip', 'download', '--no-deps', '--only-binary=:all:', '--quiet']
  subprocess.run([*command, '--dest', str(directory), RELEASE], check=True, timeout=120)
  (wheel,) = directory.glob('*.whl')
  with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(wheel))
    patch.setitem(sys.modules, 'nnsight', types.SimpleNamespace(LanguageModel=None))
    from dictionary_learning import dictionary, grad_pursuit
    from dictionary_learning.trainers import batch_top_k, matryoshka_batch_top_k, top_k

    modules = (dictionary, batch_top_k, matryoshka_batch_top_k, top_k)
    named = {k: v for module in modules for k, v in vars(module).items() if k in KINDS}
    yield named | {'grad_pursuit': grad_pursuit.grad_pursuit}
  for name in [name for name in sys.modules if name.split('.')[0] == 'dictionary_learning']:
    del sys.modules[name]


@pytest.mark.parametrize('kind', KINDS)
def test_we_read_what_dictionary_learning_saves(kind, published, tmp_path):
  import torch

  torch.manual_seed(0)
  theirs = published[kind](D, M, *KINDS[kind])
  with torch.no_grad():
    for name, parameter in theirs.named_parameters():
      parameter.copy_(torch.randn_like(parameter) * 0.5)
      if name == 'threshold':
        parameter.abs_()
    if 'BatchTopK' in kind:
      theirs.threshold.fill_(0.8)
  torch.save(theirs.state_dict(), tmp_path / 'ae.pt')
  (tmp_path / 'config.json').write_text(json.dumps({'trainer': {'dict_class': kind}}))
  theirs = published[kind].from_pretrained(str(tmp_path / 'ae.pt'))
  x = np.random.default_rng(1).standard_normal((60, D)).astype(np.float32)
  with torch.no_grad():
    f_of_theirs = theirs.encode(torch.tensor(x)).numpy()
    y_of_theirs = theirs(torch.tensor(x)).numpy()
  sae, params = load(tmp_path)
  f = sae.encode(params, x)
  assert 0.02 < np.mean(f_of_theirs > 0) < 0.9
  np.testing.assert_allclose(f, f_of_theirs, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(sae.decode(params, f, x), y_of_theirs, rtol=1e-5, atol=2e-5)


def test_gradient_pursuit_is_theirs_until_a_latent_is_set_to_zero(published):
  """From then on theirs keeps the latent in its active set, and ours does not."""
  import torch

  k = 6
  W, x = dense.coherent_case()
  torch.set_default_dtype(torch.float64)  # of the zeros that it starts with
  try:
    theirs = published['grad_pursuit'](torch.tensor(x), torch.tensor(W.T), k).numpy()
  finally:
    torch.set_default_dtype(torch.float32)
  with jax.enable_x64(True):
    codes = [np.asarray(c.to_dense()) for c in Pursuit(k).sweep(W, x, range(1, k + 1)).values()]
  stay = dense.stays(codes)
  assert 100 < stay.sum() < len(x)
  np.testing.assert_allclose(codes[-1][stay], theirs[stay], rtol=0, atol=1e-9)
  assert abs(codes[-1] - theirs)[~stay].max() > 1e-3
